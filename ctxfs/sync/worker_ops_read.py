"""Operations that read the bucket, and those on the block cache.

Owns how a version comes to this disk: in runs of blocks, each one ranged GET with If-Match, so that nothing of two versions is ever mixed.
It must not know who waits, nor read ahead on its own.
"""
from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, NoSpace, RemoteChanged, RemoteUnavailable, WrongBytes
from ctxfs.records import LIFECYCLE_NAME, Attrs, ListPage, ObjectInfo
from ctxfs.storage import posix_meta
from ctxfs.storage.block_cache import BLOCK_SIZE, AdoptFile
from ctxfs.storage.listing import ListingCheck
from ctxfs.storage.members import Place
from ctxfs.sync import protocol
from ctxfs.sync.member_content import Placed, member_content, members_content
from ctxfs.sync.worker_context import OperationChannel, WorkerContext

#: the longest ranged GET; bounds the memory of a transfer
RUN_BLOCKS = 4
_MAX_TARGET = 4096
#: objects up to this are read to find out whether a write in doubt had arrived
VERIFY_BYTES = 32 << 20
_PIECE = 8 << 20


def head(context: WorkerContext, op: protocol.Head, channel: OperationChannel) -> list[protocol.HeadItem]:
    return context.run_all(lambda key: _head_one(context, key, op), op.keys)


def _head_one(context: WorkerContext, key: str, op: protocol.Head) -> protocol.HeadItem:
    try:
        info = context.store.head(key)
        metadata = info.metadata or {}
        stamp = posix_meta.decode_stamp(metadata)
        is_hashed = op.wants_hash and stamp is not None and info.size <= VERIFY_BYTES
        if stamp is not None and stamp.sums:        # long, and of use only with the bytes
            stamp = msgspec.structs.replace(stamp, sums='')
        return protocol.HeadItem(key=key, info=info, attrs=_attrs(context, info), stamp=stamp, lifecycle=_lifecycle(context, info, op.wants_tags),
                                 sha256=content_hash(context, info) if is_hashed else '')
    except CtxfsError as error:
        name, message = protocol.describe(error)
        return protocol.HeadItem(key=key, failure=protocol.ItemFailure(key=key, name=name, message=message))


def content_hash(context: WorkerContext, info: ObjectInfo, path: str = '') -> str:
    """The SHA-256 of this version, read in pieces; '' as soon as one differs from the file at `path`, where there is one to compare with. Raises
    RemoteChanged when the object is another version by now."""
    found = hashlib.sha256()
    with open(path or os.devnull, 'rb') as file:
        for start in range(0, info.size, _PIECE):
            piece = context.store.get(info.key, start, min(start + _PIECE, info.size), if_match=info.etag)
            if path and file.read(_PIECE) != piece:
                return ''
            found.update(piece)
    return found.hexdigest()


def _lifecycle(context: WorkerContext, info: ObjectInfo, wants_tags: bool) -> str:
    """The metadata say it. Who wants to keep an object takes its tag away: that is asked for where it matters."""
    lifecycle = (info.metadata or {}).get(LIFECYCLE_NAME, '')
    if lifecycle and wants_tags and context.store.capabilities().tagging:
        return lifecycle if context.store.tags(info.key).get(LIFECYCLE_NAME) == lifecycle else ''
    return lifecycle


def _attrs(context: WorkerContext, info: ObjectInfo) -> Attrs:
    """The attributes that the metadata tell; a symlink's target is the object's body where the dialect has no key for it."""
    options = context.options
    attrs = posix_meta.decode(info.metadata or {}, key=info.key, size=info.size, mtime_ns=info.mtime_ns, content_type=info.content_type,
                              uid=options.uid, gid=options.gid, umask=options.umask)
    if stat.S_ISLNK(attrs.mode) and attrs.target is None and 0 < info.size <= _MAX_TARGET:
        target = context.store.get(info.key, if_match=info.etag)
        attrs = msgspec.structs.replace(attrs, target=target)
    return attrs


def list_pages(context: WorkerContext, op: protocol.ListPages, channel: OperationChannel) -> protocol.ListDone:
    """The next page is asked for while the reader digests this one."""
    objects = prefixes = 0
    check = ListingCheck(op.prefix, start_after=op.start_after)
    following: Future[ListPage] | None = context.helpers.submit(
        context.store.list, op.prefix, delimiter=op.delimiter, start_after=op.start_after)
    while following is not None:
        page = check.take(following.result())
        following = None
        is_last = bool(op.stop_after and page.objects and page.objects[-1].key >= op.stop_after)
        if page.next_token is not None and not is_last:
            following = context.helpers.submit(context.store.list, op.prefix, delimiter=op.delimiter, token=page.next_token)
        objects += len(page.objects)
        prefixes += len(page.prefixes)
        channel.part(page)
    return protocol.ListDone(objects=objects, prefixes=prefixes)


# --- content ---------------------------------------------------------------------------------------------------------------------

def fetch(context: WorkerContext, op: protocol.Fetch, channel: OperationChannel) -> protocol.FetchDone:
    stop = min(op.start + op.count, block_count(op.size))
    absent = context.cache.missing(op.key, op.etag, range(op.start, stop))
    runs = list(runs_of(absent))
    if len(runs) == 1:
        fetched = fetch_run(context, op, runs[0])
    else:
        fetched = sum(context.run_all(lambda run: fetch_run(context, op, run), runs))
    return protocol.FetchDone(start=op.start, stop=stop, fetched=fetched)


def block_count(size: int) -> int:
    return -(-size // BLOCK_SIZE)


def runs_of(blocks: Sequence[int]) -> Iterator[range]:
    """Consecutive blocks together, RUN_BLOCKS at most."""
    start = 0
    for index in range(1, len(blocks) + 1):
        if index == len(blocks) or blocks[index] != blocks[index - 1] + 1 or index - start == RUN_BLOCKS:
            yield range(blocks[start], blocks[index - 1] + 1)
            start = index


def _get_run(context: WorkerContext, op: protocol.Fetch | protocol.Hydrate | protocol.WarmItem, run: range) -> bytes:
    start, stop = run.start * BLOCK_SIZE, min(run.stop * BLOCK_SIZE, op.size)
    if op.place is not None:
        return member_content(context.store, op.place, etag=op.etag, size=op.size)[start:stop]
    data = context.store.get(op.key, start, stop, if_match=op.etag)
    if len(data) != stop - start:
        raise RemoteUnavailable(f'{op.key}: {len(data)} bytes came where the version {op.etag} has {stop - start}')
    return data


def fetch_run(context: WorkerContext, op: protocol.Fetch | protocol.WarmItem, run: range) -> int:
    """What is missing of these blocks into the cache, by one ranged GET unless another operation fetches some of them already; how many
    bytes came."""
    return context.flights.fetch(op.key, op.etag, run, missing=lambda blocks: context.cache.missing(op.key, op.etag, blocks),
                                 get=lambda blocks: sum(_get_into_cache(context, op, part) for part in runs_of(blocks)))


def _get_into_cache(context: WorkerContext, op: protocol.Fetch | protocol.WarmItem, run: range) -> int:
    if isinstance(op, protocol.Fetch) and op.place is not None and op.neighbours:
        with suppress(RemoteChanged, WrongBytes, NoSpace):      # what is wrong with a neighbour, or has no room, is not the reader's matter
            return _get_together(context, op, op.place)
    data = _get_run(context, op, run)
    crash_point('worker-fetch-before-store')
    context.cache.store(op.key, op.etag, run.start, data)
    return len(data)


def _get_together(context: WorkerContext, op: protocol.Fetch, place: Place) -> int:
    """A member, and those of its neighbours that are missing."""
    wanted = [(op.key, Placed(place, op.etag, op.size)), *(
        (item.key, Placed(item.place, item.etag, item.size)) for item in op.neighbours
        if item.place is not None and context.cache.missing(item.key, item.etag, range(block_count(item.size))))]
    contents = members_content(context.store, [placed for _, placed in wanted])
    crash_point('worker-fetch-before-store')
    context.cache.store_many((key, placed.etag, content) for (key, placed), content in zip(wanted, contents, strict=True))
    return sum(map(len, contents))


def hydrate(context: WorkerContext, op: protocol.Hydrate, channel: OperationChannel) -> protocol.HydrateDone:
    """Fsynced: the caller's row, which makes this file the only truth, may become durable before the file would by itself, and a power cut
    would leave a hole that is then uploaded over the good object."""
    temporary = f'{op.path}.hydrate-{secrets.token_hex(4)}'
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.ftruncate(fd, op.size)
            fetched = _fill(context, op, channel, fd)
            if fetched and op.size > RUN_BLOCKS * BLOCK_SIZE and not context.store.proves(op.etag, lambda: _pieces(fd)):
                context.cache.drop(op.key)      # some of it may have come from there
                raise WrongBytes(f'{op.key}: what came is not what the store has (its etag does not fit)')
            os.fsync(fd)
        finally:
            os.close(fd)
        crash_point('worker-hydrate-before-rename')
        os.rename(temporary, op.path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return protocol.HydrateDone(size=op.size, fetched=fetched)


def _pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, BLOCK_SIZE, offset):
        yield piece
        offset += len(piece)


def _fill(context: WorkerContext, op: protocol.Hydrate, channel: OperationChannel, fd: int) -> int:
    runs = runs_of(list(range(block_count(op.size))))
    return sum(context.run_all(lambda run: _fill_run(context, op, channel, fd, run), runs))


def _fill_run(context: WorkerContext, op: protocol.Hydrate, channel: OperationChannel, fd: int, run: range) -> int:
    if channel.is_cancelled:
        raise CtxfsError('nobody waited for it any more')
    absent = [block for block in run if not _copy_cached(context, op, fd, block)]
    fetched = 0
    for part in runs_of(absent):
        data = _get_run(context, op, part)
        _write_at(fd, data, part.start * BLOCK_SIZE)
        fetched += len(data)
    channel.moved(min(run.stop * BLOCK_SIZE, op.size) - run.start * BLOCK_SIZE)
    return fetched


def _copy_cached(context: WorkerContext, op: protocol.Hydrate, fd: int, block: int) -> bool:
    found = context.cache.open_block(op.key, op.etag, block)
    if found is None:
        return False
    try:
        if found.length != min(BLOCK_SIZE, op.size - block * BLOCK_SIZE):
            return False
        _copy_range(found.fd, fd, found.offset, block * BLOCK_SIZE, found.length)
        return True
    finally:
        os.close(found.fd)


def _copy_range(source: int, target: int, source_at: int, target_at: int, length: int) -> None:
    """In the kernel where it can (a reflink on file systems that have it), else through memory."""
    try:
        while length:
            count = os.copy_file_range(source, target, length, source_at, target_at)
            if count == 0:
                break
            source_at, target_at, length = source_at + count, target_at + count, length - count
    except OSError:  # EXDEV, EOPNOTSUPP, ENOSYS: between these file systems the kernel does not
        pass
    if length:
        _write_at(target, os.pread(source, length, source_at), target_at)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def adopt(context: WorkerContext, op: protocol.Adopt, channel: OperationChannel) -> protocol.AdoptDone:
    missing = context.cache.adopt([AdoptFile(item.path, item.key, item.etag, item.size) for item in op.items], recent=context.recent_sums,
                                  on_placed=lambda: crash_point('worker-adopt-before-rows'))
    return protocol.AdoptDone(adopted=len(op.items) - len(missing), missing=missing)


def tidy_cache(context: WorkerContext, op: protocol.TidyCache, channel: OperationChannel) -> protocol.TidyDone:
    return protocol.TidyDone(removed=context.cache.sweep(op.older_than))


# --- the store itself ------------------------------------------------------------------------------------------------------------

def probe(context: WorkerContext, op: protocol.Probe, channel: OperationChannel) -> protocol.ProbeDone:
    context.store.learn(None)
    return protocol.ProbeDone(capabilities=msgspec.structs.asdict(context.store.capabilities()))


def check(context: WorkerContext, op: protocol.Check, channel: OperationChannel) -> protocol.CheckDone:
    context.store.check()
    return protocol.CheckDone()
