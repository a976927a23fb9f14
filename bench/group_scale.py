def scale(world): pass
def million(world): pass
