"""A commit of the archive log that is worth something only as the next one after what its maker has seen.

Owns that order: look at the log, commit as its next number, apply. It must not know what is committed; a flush, which is made again over whatever
others committed, has a way of its own (archive_commit.py).
"""
from __future__ import annotations

import secrets
from collections.abc import Sequence

from ctxfs.errors import RemoteChanged
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ArchiveInfo, LogHeader, MemberRecord
from ctxfs.sync.abort_slots import boot_seconds
from ctxfs.sync.archive_commit import COMMIT_SECONDS
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_protocol import CommitArchive
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.pool import TransferPool


async def commit_next(pool: TransferPool | GuardedPool, mirror: ArchiveMirror, number: int, *, host: str, created_ns: int,
                      archives: list[ArchiveInfo], records: Sequence[MemberRecord], dropped: Sequence[str] = ()) -> bool:
    """Commit right after `number`, and apply it. False where others committed meanwhile. Raises what the store says."""
    async with mirror.lock:
        until = boot_seconds() + COMMIT_SECONDS
        await mirror.catch_up_locked()
        if mirror.number != number:
            return False
        header = LogHeader(kind='commit', number=number + 1, nonce=secrets.token_hex(8), host=host, created_ns=created_ns, archives=archives,
                           dropped=list(dropped))
        try:
            await pool.call(CommitArchive(key=mirror.context_prefix + log_format.commit_key(header.number), header=header, parts=[], until=until,
                                          more=list(records)))
        except RemoteChanged:
            return False
        mirror.apply_commit(header, records)
        mirror.commits += 1
    return True
