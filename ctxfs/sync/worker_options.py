"""What a transfer worker is started with. Owns the record, which crosses the pipe in the first frame; it must not know what it is used for."""
from __future__ import annotations

from typing import Any

import msgspec

from ctxfs import logs


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All a worker must know. `store_options` go to `open_store` as they are. `capabilities`: what Probe answered on an earlier day."""
    store_url: str
    store_options: dict[str, Any] = {}
    cache_dir: str
    cache_limit: int
    host: str
    threads: int = 16
    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    capabilities: dict[str, Any] | None = None
    log_level: int = 20
    log_style: logs.Style = 'text'
    #: bytes a second that all workers may send and receive together; 0: no bound
    upload_rate: float = 0.0
    download_rate: float = 0.0
    #: operations of all workers together that no program waits for; 0: as many as the store is found to be good for
    transfers: int = 0
