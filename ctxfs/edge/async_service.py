"""ContextService for programs with a loop, asyncio's or trio's: the same methods, awaited.

Owns nothing but the way into a thread and back. It must not know what a method does.
"""
from __future__ import annotations

from ctxfs.edge.context_service import URL_SECONDS, ContextService
from ctxfs.edge.sdk_session import CreateSessionParams, SdkSession, SessionResult, create_session
from ctxfs.edge.service_results import (
    ClearContextResult,
    Context,
    ContextFileListResult,
    ContextListParams,
    ContextListResult,
    ContextResult,
    FileUrlResult,
    OperationResult,
)
from ctxfs.edge.sync_call import in_thread


class AsyncContextService:
    """See ContextService. Cancelling ends the waiting, not what was begun."""

    def __init__(self, store: str | None = None, *, state_dir: str | None = None) -> None:
        self._service = ContextService(store, state_dir=state_dir)

    async def __aenter__(self) -> AsyncContextService:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        await in_thread(self._service.close)

    async def get(self, name: str | None = None, create: bool = False, context_id: str | None = None) -> ContextResult:
        return await in_thread(lambda: self._service.get(name, create, context_id))

    async def create(self, name: str) -> ContextResult:
        return await in_thread(lambda: self._service.create(name))

    async def list(self, params: ContextListParams | None = None) -> ContextListResult:
        return await in_thread(lambda: self._service.list(params))

    async def update(self, context: Context) -> OperationResult:
        return await in_thread(lambda: self._service.update(context))

    async def copy(self, context: Context, name: str, *, update: bool = False, mode: str = '') -> ContextResult:
        return await in_thread(lambda: self._service.copy(context, name, update=update, mode=mode))

    async def delete(self, context: Context, *, force: bool = False) -> OperationResult:
        return await in_thread(lambda: self._service.delete(context, force=force))

    async def clear_async(self, context_id: str, *, force: bool = False) -> ClearContextResult:
        return await in_thread(lambda: self._service.clear_async(context_id, force=force))

    start_clear = clear_async

    async def get_clear_status(self, context_id: str) -> ClearContextResult:
        return await in_thread(lambda: self._service.get_clear_status(context_id))

    async def clear(self, context_id: str, timeout: int | float = 60, poll_interval: float = 2.0, *, force: bool = False) -> ClearContextResult:
        return await in_thread(lambda: self._service.clear(context_id, timeout, poll_interval, force=force))

    async def list_files(self, context_id: str, parent_folder_path: str, page_number: int = 1, page_size: int = 50,
                         max_results: int | None = None, next_token: str | None = None) -> ContextFileListResult:
        return await in_thread(lambda: self._service.list_files(context_id, parent_folder_path, page_number, page_size, max_results, next_token))

    async def get_file_upload_url(self, context_id: str, file_path: str, *, expires: int = URL_SECONDS) -> FileUrlResult:
        return await in_thread(lambda: self._service.get_file_upload_url(context_id, file_path, expires=expires))

    async def get_file_download_url(self, context_id: str, file_path: str, *, expires: int = URL_SECONDS) -> FileUrlResult:
        return await in_thread(lambda: self._service.get_file_download_url(context_id, file_path, expires=expires))

    async def delete_file(self, context_id: str, file_path: str) -> OperationResult:
        return await in_thread(lambda: self._service.delete_file(context_id, file_path))


class AsyncAgentBay:
    """As context_service.AgentBay: `await agent_bay.context.get(…)`."""

    def __init__(self, api_key: str = '', *, store: str | None = None, state_dir: str | None = None) -> None:
        self.context = AsyncContextService(store, state_dir=state_dir)
        self._where = {'store': store, 'state_dir': state_dir}

    async def create(self, params: CreateSessionParams | None = None) -> SessionResult:
        return await in_thread(lambda: create_session(params, **self._where))

    async def delete(self, session: SdkSession, sync_context: bool = False) -> OperationResult:
        return await in_thread(lambda: session.delete(sync_context))
