def draw(found): return ''
