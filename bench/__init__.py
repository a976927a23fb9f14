"""How fast ctxfs is beside the local disk, beside bare S3 clients and beside other object-store mounts; started by scripts/bench.

Owns the measuring: what is done (`group_*`), on which sides (`sides`, `rivals`), against which servers (`servers`, `scale_server`), and how
samples become one figure (`figures`). Nothing is asserted: figures are for people, and the machine is what it is.
"""
