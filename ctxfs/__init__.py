"""ctxfs: a context (a directory of an object-store bucket) mounted as a real disk."""

__version__ = '0.1.0'
