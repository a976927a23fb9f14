"""A reference model of a disk: operations as plain tuples, driven on a mount and on a local directory at once.

Owns what an operation is, what of its outcome counts, and what of a tree counts. It must not know how ctxfs works: only system calls
and the command line. An operation is a tuple of literals, so that a list of them is a program that can be printed, kept and replayed.
"""
