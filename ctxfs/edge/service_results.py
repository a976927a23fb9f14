"""What ContextService takes and returns: the names, fields and defaults of AgentBay's SDK.

Owns their shape, and how an error of ctxfs becomes one of the SDK's texts. It must not know how anything is done.
"""
from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from ctxfs.errors import CtxfsError, Denied, Exists, InUse, InvalidArgument, NotFound, Unsupported, UsageError
from ctxfs.storage.registry import ContextRecord
from ctxfs.sync.context_files import Entry

#: error → the code that stands before its message, the first that fits
_CODES: tuple[tuple[type[CtxfsError], str], ...] = (
    (InUse, 'Context.InUse'), (Exists, 'Context.NameExists'), (Unsupported, 'UnsupportedByStore'), (Denied, 'AccessDenied'),
    (UsageError, 'InvalidParameter'), (InvalidArgument, 'InvalidParameter'))


class AgentBayError(Exception):
    """Base of what is raised; most failures are results with `success` False."""

    def __init__(self, message: str = '', *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args)
        self.extra = kwargs


class ClearanceTimeoutError(AgentBayError):
    def __init__(self, message: str = 'Context clearing operation timed out', *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)


@dataclass
class Context:
    """A context. `name` may be set, and stored by `update`."""
    id: str
    name: str
    created_at: str | None = None
    last_used_at: str | None = None

    @classmethod
    def of(cls, record: ContextRecord) -> Context:
        return cls(record.id, record.name, record.created_at, record.last_used_at)


@dataclass
class ContextListParams:
    """`max_results`: of one page, 10 unless given. `session_id` is taken and not used: there are no sessions here."""
    max_results: int | None = None
    next_token: str | None = None
    session_id: str | None = None


@dataclass
class ContextResult:
    request_id: str = ''
    success: bool = False
    context_id: str = ''
    context: Context | None = None
    error_message: str = ''


@dataclass
class ContextListResult:
    request_id: str = ''
    success: bool = False
    contexts: list[Context] = field(default_factory=list)
    next_token: str | None = None
    max_results: int | None = None
    total_count: int | None = None
    error_message: str = ''


@dataclass
class OperationResult:
    request_id: str = ''
    success: bool = False
    data: Any = None
    error_message: str = ''


@dataclass
class ClearContextResult:
    """`status`: clearing, available, or another state of the context."""
    request_id: str = ''
    success: bool = False
    error_message: str = ''
    status: str | None = None
    context_id: str | None = None
    data: Any = None


@dataclass
class FileUrlResult:
    """`expire_time`: when the URL ends, in Unix seconds."""
    request_id: str = ''
    success: bool = False
    url: str = ''
    expire_time: int | None = None
    error_message: str = ''


@dataclass
class ContextFileEntry:
    """`file_path` is the path in the context, as every method takes it. `file_type`: FILE or FOLDER; a folder has no size and no times."""
    file_id: str
    file_name: str
    file_path: str
    file_type: str | None = None
    gmt_create: str | None = None
    gmt_modified: str | None = None
    size: int | None = None
    status: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> ContextFileEntry:
        at = None if entry.is_dir else time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(entry.mtime_ns / 1e9))
        return cls(entry.etag.strip('"'), entry.name, entry.path, 'FOLDER' if entry.is_dir else 'FILE', at, at,
                   None if entry.is_dir else entry.size, 'ready')


@dataclass
class ContextFileListResult:
    """`count`: entries in this page."""
    request_id: str = ''
    success: bool = False
    entries: list[ContextFileEntry] = field(default_factory=list)
    count: int | None = None
    next_token: str | None = None
    error_message: str = ''


def new_request_id() -> str:
    return str(uuid.uuid4()).upper()


def message_of(error: CtxfsError, otherwise: str) -> str:
    """`[Code] message` of what was refused; `otherwise: message` of what failed."""
    if isinstance(error, NotFound):
        return f'[{"ContextNotFound" if "no context" in str(error) else "FileNotFound"}] {error}'
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    return f'[{code}] {error}' if code else f'{otherwise}: {error}'
