"""The audit log of commands: where it is, and a line for what one does to a context.

Owns the choice of the file (--audit-log, else config.toml) and that a command whose log cannot be written does nothing. It must not know
what the commands do, nor the daemon's lines.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ctxfs.edge.cli_common import Invocation
from ctxfs.errors import CtxfsError, UsageError
from ctxfs.storage.audit_log import AuditLog, about
from ctxfs.storage.registry import ContextRecord


def audit_path(invocation: Invocation, given: str | None = None, *, mountpoint: str | None = None) -> str | None:
    """Raises UsageError for a path that cannot serve: below the coming mount, which the daemon must not touch, or relative where nobody knows
    to what."""
    if given is not None:
        path = os.path.abspath(os.path.expanduser(given))
    elif invocation.config.audit_log is not None:
        path = os.path.expanduser(invocation.config.audit_log)
        if not os.path.isabs(path):
            raise UsageError(f'{invocation.configuration.origin("audit_log")}: audit_log: {path}: write an absolute path')
    else:
        return None
    if mountpoint is not None and f'{os.path.realpath(os.path.dirname(path))}/'.startswith(f'{mountpoint}/'):
        raise UsageError(f'the audit log {path} would lie inside the mount; choose a place outside of {mountpoint}')
    return path


class Line:
    """One command's line, until it is written."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.data: dict[str, Any] = {}

    def about(self, context: ContextRecord) -> None:
        """What the command works on, once that is known."""
        self.data.update(contextId=context.id, context=context.name)


@contextmanager
def audited(invocation: Invocation, operation: str, *, path: str | None = None, store: str | None = None, **data: Any) -> Iterator[Line]:
    """A line with the outcome of the block, in the file at `path` (else config.toml's). Raises Denied before the block when it cannot be
    written; once it could be opened, only the log itself says what could not."""
    log = AuditLog(path or audit_path(invocation), about(store or invocation.store_url))
    line = Line(operation)
    line.data.update(data)
    try:
        yield line
        log.write(operation, **line.data)
    except CtxfsError as error:
        log.write(operation, result='failed', error=str(error), **line.data)
        raise
    finally:
        log.close()
