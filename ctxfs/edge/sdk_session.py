"""Sessions with the SDK's names: `agent_bay.create(CreateSessionParams(…))`, `agent_bay.delete(session, sync_context=True)`.

Owns the result objects and what of the SDK's session there is here: its contexts, and its files, which are this host's. It must not know how
contexts are mounted (session.py). What fails is a result that says so, as in the SDK.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ctxfs.edge.sdk_policy import ContextSync
from ctxfs.edge.service_results import OperationResult, message_of, new_request_id
from ctxfs.edge.session import Session
from ctxfs.errors import CtxfsError


@dataclass
class CreateSessionParams:
    """`labels` and `image_id` are kept and not used: a session is this host."""
    labels: dict[str, str] = field(default_factory=dict)
    image_id: str = ''
    context_syncs: list[ContextSync] = field(default_factory=list)


@dataclass
class FileContentResult:
    request_id: str = ''
    success: bool = False
    content: str = ''
    error_message: str = ''


class FileSystem:
    """The SDK's `session.file_system`, as far as programs read and write whole files with it."""

    def write_file(self, path: str, content: str, mode: str = 'overwrite') -> OperationResult:
        request_id = new_request_id()
        if mode not in ('overwrite', 'append'):
            return OperationResult(request_id, False, False, f'Invalid mode: {mode}. Valid values are: overwrite, append')
        try:
            os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
            with open(path, 'a' if mode == 'append' else 'w', encoding='utf-8') as file:
                file.write(content)
        except OSError as error:
            return OperationResult(request_id, False, False, f'{path}: {error.strerror}')
        return OperationResult(request_id, True, True)

    def read_file(self, path: str) -> FileContentResult:
        request_id = new_request_id()
        try:
            with open(path, encoding='utf-8', errors='replace') as file:
                return FileContentResult(request_id, True, file.read())
        except OSError as error:
            return FileContentResult(request_id, error_message=f'{path}: {error.strerror}')

    write, read = write_file, read_file


class SdkSession(Session):
    """A session that was made by `create`: open from the start."""

    file_system = FileSystem()

    def delete(self, sync_context: bool = False) -> OperationResult:
        """Unmount, and with `sync_context` wait for the upload; without, it goes on in the background."""
        return _operation(lambda: self.close(sync_context=sync_context), f'Failed to delete session {self.session_id}')


@dataclass
class SessionResult:
    request_id: str = ''
    success: bool = False
    session: SdkSession | None = None
    error_message: str = ''


def create_session(params: CreateSessionParams | None, *, store: str | None, state_dir: str | None) -> SessionResult:
    """Returns when the contexts are mounted: they answer at once, and nothing is downloaded first."""
    request_id = new_request_id()
    try:
        made = SdkSession((params or CreateSessionParams()).context_syncs, store=store, state_dir=state_dir)
        made.open()
    except CtxfsError as error:
        return SessionResult(request_id, error_message=message_of(error, 'Failed to create session'))
    return SessionResult(request_id, True, made)


def _operation(act: Callable[[], None], otherwise: str) -> OperationResult:
    request_id = new_request_id()
    try:
        act()
    except CtxfsError as error:
        return OperationResult(request_id, False, False, message_of(error, otherwise))
    return OperationResult(request_id, True, True)
