"""The Python API of contexts and their files without a mount: the SDK's ContextService, on any store.

Owns the reading of arguments and what is raised; what is refused or fails is a result that says so, as in the SDK. It must not know how anything
is done (context_desk.py and what is below it).

    from ctxfs import ContextListParams, ContextService
    contexts = ContextService('s3://bucket?endpoint=…')     # without an argument: the store of the environment or of config.toml
    context = contexts.get('my-project', create=True).context
    contexts.list_files(context.id, '/data').entries
"""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ctxfs.edge.cli_common import Invocation
from ctxfs.edge.context_desk import ContextDesk, new_desk
from ctxfs.edge.sdk_session import CreateSessionParams, SdkSession, SessionResult, create_session
from ctxfs.edge.service_results import (
    AgentBayError,
    ClearanceTimeoutError,
    ClearContextResult,
    Context,
    ContextFileEntry,
    ContextFileListResult,
    ContextListParams,
    ContextListResult,
    ContextResult,
    FileUrlResult,
    OperationResult,
    message_of,
    new_request_id,
)
from ctxfs.errors import CtxfsError, UsageError
from ctxfs.storage.registry import ContextRecord
from ctxfs.sync.context_files import ContextFiles, EntryPage

log = logging.getLogger(__name__)

T = TypeVar('T')

DEFAULT_PAGE = 10
#: how long a URL is good
URL_SECONDS = 3600


class ContextService:
    """See the module docstring. Thread-safe; the store is opened by the first call and closed by `close` or at the end of a `with`.

    `store`: a URL as --store takes it; `state_dir`: as --state-dir. Raises UsageError for one that cannot be."""

    def __init__(self, store: str | None = None, *, state_dir: str | None = None) -> None:
        self._invocation = Invocation(store, state_dir, False)
        self._lock = threading.Lock()
        self._opened: ContextDesk | None = None
        self._clearings: dict[str, _Clearing] = {}

    def __enter__(self) -> ContextService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for clearings that were begun here."""
        for clearing in list(self._clearings.values()):
            clearing.wait(None)
        with self._lock:
            desk, self._opened = self._opened, None
        if desk is not None:
            desk.close()

    def _desk(self, *, create: bool = False, reference: str | None = None) -> ContextDesk:
        with self._lock:
            if self._opened is None:
                self._opened = new_desk(self._invocation, create=create, reference=reference)
            return self._opened

    # --- contexts -------------------------------------------------------------------------------------------------------------------

    def get(self, name: str | None = None, create: bool = False, context_id: str | None = None) -> ContextResult:
        """By name or by id; with `create` the context of that name is made where there is none."""
        if not name and not context_id:
            raise AgentBayError("Either 'name' or 'context_id' must be provided")
        if create and not name:
            raise AgentBayError("Cannot create context using context_id. Use 'name' parameter when create=True")
        request_id, reference = new_request_id(), context_id or name or ''
        try:
            desk = self._desk(create=create, reference=reference)
            record = desk.registry.create(name) if create and name else desk.registry.find(reference)
        except CtxfsError as error:
            return ContextResult(request_id, error_message=message_of(error, f'Failed to get context {reference}'))
        return ContextResult(request_id, True, record.id, Context.of(record))

    def create(self, name: str) -> ContextResult:
        """Or get it: there is no "already exists"."""
        return self.get(name, create=True)

    def list(self, params: ContextListParams | None = None) -> ContextListResult:
        """One page, in the order of ids. Only its own contexts are read."""
        request_id, params = new_request_id(), params or ContextListParams()
        size = DEFAULT_PAGE if params.max_results is None else params.max_results
        try:
            if size < 1:
                raise UsageError(f'max_results is {size}; write 1 or more')
            page = self._desk().registry.list_contexts(size, params.next_token or None)
        except CtxfsError as error:
            return ContextListResult(request_id, max_results=size, error_message=message_of(error, 'Failed to list contexts'))
        return ContextListResult(request_id, True, [Context.of(record) for record in page.contexts], page.next_token, size, page.total_count)

    def update(self, context: Context) -> OperationResult:
        """Store the name that the object has now."""
        def act() -> bool:
            desk, record = self._found(context.id)
            desk.rename(record, context.name)
            return True
        return _operation(act, f'Failed to update context {context.id}')

    def delete(self, context: Context, *, force: bool = False) -> OperationResult:
        """The context with all its files; returns when they are gone. Refused while it is mounted somewhere, unless `force`."""
        def act() -> bool:
            desk, record = self._found(context.id)
            desk.finish_clearing(desk.begin_clearing(record, deletes=True, force=force))
            return True
        return _operation(act, f'Failed to delete context {context.id}')

    def copy(self, context: Context, name: str, *, update: bool = False, mode: str = '') -> ContextResult:
        """Beyond the SDK: the context of that name becomes a copy of `context`, made where there is none; returns when it is whole. Refused while
        it is mounted somewhere, and where it has files unless `update`. `mode`: "File" or "Archive", where the copy is to be kept in that. Cut
        short, the same call goes on with it."""
        request_id = new_request_id()
        try:
            desk, source = self._found(context.id)
            target = desk.begin_copy(source, desk.target(name, create=True), update=update, mode=mode)
            desk.finish_copy(source, target, mode=mode)
            record = desk.registry.find(target.id)
        except CtxfsError as error:
            return ContextResult(request_id, error_message=message_of(error, f'Failed to copy context {context.id}'))
        return ContextResult(request_id, True, record.id, Context.of(record))

    def _found(self, context_id: str) -> tuple[ContextDesk, ContextRecord]:
        desk = self._desk(reference=context_id)
        return desk, desk.registry.find(context_id)

    # --- clearing -------------------------------------------------------------------------------------------------------------------

    def clear_async(self, context_id: str, *, force: bool = False) -> ClearContextResult:
        """Begin to remove all files of the context; it goes on in a thread of this process, and whoever calls again after a crash goes on
        with it. Refused while it is mounted somewhere, unless `force`."""
        request_id = new_request_id()
        try:
            desk, record = self._found(context_id)
            running = self._clearings.get(record.id)
            if running is None or running.is_over:
                self._clearings[record.id] = _Clearing(desk, desk.begin_clearing(record, deletes=False, force=force))
        except CtxfsError as error:
            return ClearContextResult(request_id, False, message_of(error, f'Failed to start context clearing for {context_id}'), None, context_id)
        return ClearContextResult(request_id, True, '', 'clearing', record.id)

    start_clear = clear_async

    def get_clear_status(self, context_id: str) -> ClearContextResult:
        """The state of the context; failed where a clearing that was begun here ended with an error."""
        request_id = new_request_id()
        try:
            _, record = self._found(context_id)
        except CtxfsError as error:
            return ClearContextResult(request_id, False, message_of(error, 'Failed to get clear status'), None, context_id)
        clearing = self._clearings.get(record.id)
        failure = clearing.failure if clearing is not None and record.state == 'clearing' else None
        if failure is not None:
            return ClearContextResult(request_id, False, message_of(failure, 'Failed to clear the context'), record.state, record.id)
        return ClearContextResult(request_id, True, '', record.state, record.id)

    def clear(self, context_id: str, timeout: int | float = 60, poll_interval: float = 2.0, *, force: bool = False) -> ClearContextResult:
        """Remove all files and wait until that is done. Raises ClearanceTimeoutError; then it goes on all the same."""
        began, started = time.monotonic(), self.clear_async(context_id, force=force)
        if not started.success:
            return started
        clearing = self._clearings[str(started.context_id)]
        for _ in range(max(1, int(timeout / poll_interval))):
            is_over = clearing.wait(poll_interval)
            found = self.get_clear_status(str(started.context_id))
            if not found.success or found.status == 'available':
                return found
            if is_over and clearing.failure is None:
                log.info('%s says %s although it was cleared', context_id, found.status)
        raise ClearanceTimeoutError(f'Context clearing timed out after {time.monotonic() - began:.2f} seconds')

    # --- files ----------------------------------------------------------------------------------------------------------------------

    def list_files(self, context_id: str, parent_folder_path: str, page_number: int = 1, page_size: int = 50,
                   max_results: int | None = None, next_token: str | None = None) -> ContextFileListResult:
        """One level of a folder. With `max_results` or `next_token` by tokens, else by page numbers (each reads the pages before it)."""
        request_id = new_request_id()
        try:
            desk, record = self._found(context_id)
            files = desk.files(record)
            if max_results is not None or next_token is not None:
                page = files.page(parent_folder_path, _size('max_results', DEFAULT_PAGE if max_results is None else max_results), next_token or None)
            else:
                page = _numbered(files, parent_folder_path, _size('page_number', page_number), _size('page_size', page_size))
        except CtxfsError as error:
            return ContextFileListResult(request_id, error_message=message_of(error, f'Failed to list files of {context_id}'))
        entries = [ContextFileEntry.of(entry) for entry in page.entries]
        return ContextFileListResult(request_id, True, entries, len(entries), page.next_token)

    def get_file_upload_url(self, context_id: str, file_path: str, *, expires: int = URL_SECONDS) -> FileUrlResult:
        """A URL that takes the file by one HTTP PUT, from whoever has it. `expires`: seconds."""
        return self._url(context_id, expires, lambda files: files.upload_url(file_path, expires), for_writing=True)

    def get_file_download_url(self, context_id: str, file_path: str, *, expires: int = URL_SECONDS) -> FileUrlResult:
        """A URL that answers an HTTP GET with the file, whoever asks."""
        return self._url(context_id, expires, lambda files: files.download_url(file_path, expires), for_writing=False)

    def _url(self, context_id: str, expires: int, make: Callable[[ContextFiles], str], *, for_writing: bool) -> FileUrlResult:
        request_id, now = new_request_id(), int(time.time())
        try:
            desk, record = self._found(context_id)
            url = make(desk.files(record, for_writing=for_writing))
        except CtxfsError as error:
            return FileUrlResult(request_id, error_message=message_of(error, f'Failed to make a URL for {context_id}'))
        return FileUrlResult(request_id, True, url, now + expires)

    def delete_file(self, context_id: str, file_path: str) -> OperationResult:
        """One file."""
        def act() -> bool:
            desk, record = self._found(context_id)
            desk.files(record).delete_file(file_path)
            return True
        return _operation(act, f'Failed to delete {file_path}')


class _Clearing:
    """One clearing that goes on in the background."""

    def __init__(self, desk: ContextDesk, record: ContextRecord) -> None:
        self.failure: CtxfsError | None = None
        self._desk = desk
        self._record = record
        self._over = threading.Event()
        # no daemon thread: a program that ends lets it come to its end
        threading.Thread(target=self._run, name='ctxfs-clear').start()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def _run(self) -> None:
        try:
            self._desk.finish_clearing(self._record)
        except CtxfsError as error:
            log.info('clearing %s was cut short: %s', self._record.id, error)
            self.failure = error
        except Exception as error:
            log.exception('clearing %s failed unexpectedly', self._record.id)
            self.failure = CtxfsError(f'{type(error).__name__}: {error}')
        finally:
            self._over.set()

    def wait(self, seconds: float | None) -> bool:
        return self._over.wait(seconds)


def _operation(act: Callable[[], Any], otherwise: str) -> OperationResult:
    request_id = new_request_id()
    try:
        return OperationResult(request_id, True, act())
    except CtxfsError as error:
        return OperationResult(request_id, False, False, message_of(error, otherwise))


def _size(name: str, value: int) -> int:
    if value < 1:
        raise UsageError(f'{name} is {value}; write 1 or more')
    return value


def _numbered(files: ContextFiles, folder: str, number: int, size: int) -> EntryPage:
    """Page `number` of that size; an empty one behind the last."""
    skip, token = (number - 1) * size, None
    while skip:
        passed = files.page(folder, min(skip, 1000), token)
        if passed.next_token is None:
            return EntryPage(entries=[], next_token=None)
        skip, token = skip - len(passed.entries), passed.next_token
    return files.page(folder, size, token)


class AgentBay:
    """Stands where the SDK's client stands, for contexts and the sessions that have them mounted. `api_key` is taken and not used: credentials
    are the store's own."""

    def __init__(self, api_key: str = '', *, store: str | None = None, state_dir: str | None = None) -> None:
        self.context = ContextService(store, state_dir=state_dir)
        self._where = {'store': store, 'state_dir': state_dir}

    def create(self, params: CreateSessionParams | None = None) -> SessionResult:
        """A session: the contexts of `params` are mounted on this host, at their paths."""
        return create_session(params, **self._where)

    def delete(self, session: SdkSession, sync_context: bool = False) -> OperationResult:
        """The end of the session. With `sync_context` it returns when everything is in the bucket."""
        return session.delete(sync_context)
