"""ctxfs: a context (a directory of an object-store bucket) mounted as a real disk.

The Python API has the names of AgentBay's SDK: `from ctxfs import ContextService` for contexts and their files without a mount
(ctxfs.edge.context_service), ContextManager for this host's mounts (ctxfs.edge.context_manager), ContextSync and SyncPolicy (ctxfs.edge.sdk_policy);
`session` mounts contexts for the life of a block (ctxfs.edge.session).
"""
from __future__ import annotations

import importlib

__version__ = '0.1.0'

#: loaded when they are asked for (PEP 562): every worker imports this package, and none needs them
_EXPORTS = {name: module for module, names in {
    'ctxfs.edge.context_manager': ('ContextManager', 'ContextStatusData', 'ContextInfoResult', 'ContextSyncResult'),
    'ctxfs.edge.context_service': ('AgentBay', 'ContextService'),
    'ctxfs.edge.async_service': ('AsyncAgentBay', 'AsyncContextService'),
    'ctxfs.edge.service_results': (
        'AgentBayError', 'ClearContextResult', 'ClearanceTimeoutError', 'Context', 'ContextFileEntry', 'ContextFileListResult',
        'ContextListParams', 'ContextListResult', 'ContextResult', 'FileUrlResult', 'OperationResult'),
    'ctxfs.edge.session': ('Session', 'session'),
    'ctxfs.edge.sdk_session': ('CreateSessionParams', 'SessionResult'),
    'ctxfs.edge.sdk_policy': (
        'BWList', 'ContextSync', 'DeletePolicy', 'DownloadPolicy', 'DownloadStrategy', 'ExtractPolicy', 'Lifecycle', 'MappingPolicy',
        'RecyclePolicy', 'SyncPolicy', 'UploadMode', 'UploadPolicy', 'UploadStrategy', 'WhiteList'),
}.items() for name in names}
__all__ = ['__version__', *_EXPORTS]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
