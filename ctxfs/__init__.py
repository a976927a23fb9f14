"""ctxfs: a context (a directory of an object-store bucket) mounted as a real disk.

`from ctxfs import ContextManager` is the Python API of this host's mounts; see ctxfs.edge.context_manager.
"""
from __future__ import annotations

import importlib

__version__ = '0.1.0'

#: loaded when they are asked for (PEP 562): every worker imports this package, and none needs them
_EXPORTS = dict.fromkeys(('ContextManager', 'ContextStatusData', 'ContextInfoResult', 'ContextSyncResult'), 'ctxfs.edge.context_manager')
__all__ = ['ContextInfoResult', 'ContextManager', 'ContextStatusData', 'ContextSyncResult', '__version__']


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
