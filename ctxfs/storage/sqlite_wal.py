"""The write-ahead log of a SQLite database, read without SQLite (sqlite.org/fileformat2.html, "The Write-Ahead Log").

Owns the format of the log and of the one part of its index that says how much of it was committed. It must not know pages or tables, and
changes nothing.

SQLite takes the first frame whose checksum is wrong for the end of the log, and says nothing: a flipped bit in the middle loses every
transaction behind it. Here the frames behind it are seen, because each frame carries the running checksum that the next one begins with.
"""
from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_LITTLE, _BIG = 0x377F0682, 0x377F0683
_FORMAT = 3007000
_Sum = tuple[int, int]


class Frame(NamedTuple):
    """One page as a transaction wrote it. `commit`: pages of the database after that transaction, 0 in all but its last frame."""
    page: int
    commit: int
    data: bytes


class Log(NamedTuple):
    """`frames`: those whose checksums are right, in order, up to the last that ends a transaction. `committed`: how many of them SQLite
    takes, too. `is_damaged`: more was committed than that."""
    frames: list[Frame]
    committed: int
    is_damaged: bool


def read(path: Path) -> Log:
    """The log of the database at `path`; an empty one where there is none. Costs 0.2 s for each MiB."""
    data, expected = _bytes_of(path), committed_frames(path)
    if len(data) < HEADER_BYTES:
        return Log([], 0, expected > 0)
    frames = list(_frames(data, path))
    before = _up_to_commit([frame for frame, is_chained in frames if is_chained])
    after = _up_to_commit([frame for frame, _ in frames])
    return Log(after, len(before), len(after) > len(before) or len(before) < expected)


def goes_on(path: Path, taken: int) -> bool:
    """Whether transactions stand behind the first `taken` frames, where SQLite found the log's end. Costs by what stands there."""
    data = _bytes_of(path)
    return len(data) >= HEADER_BYTES and bool(_up_to_commit([frame for frame, _ in _frames(data, path, taken)]))


def _bytes_of(path: Path) -> bytes:
    log = path.with_name(path.name + '-wal')
    return log.read_bytes() if log.exists() else b''


def _up_to_commit(frames: list[Frame]) -> list[Frame]:
    while frames and not frames[-1].commit:
        frames.pop()
    return frames


class _Header(NamedTuple):
    """What the log's header says; `sum` None where it is damaged, and the first frame tells the salts."""
    size: int
    salts: bytes
    order: str
    sum: _Sum | None


def _header(data: bytes, path: Path) -> _Header:
    magic, version, size = struct.unpack_from('>III', data)
    order = '<' if magic == _LITTLE else '>'
    found = _checksum(data[:24], (0, 0), order)
    if magic in (_LITTLE, _BIG) and version == _FORMAT and found == struct.unpack_from('>II', data, 24):
        return _Header(size, data[16:24], order, found)
    return _Header(_page_size(path), data[HEADER_BYTES + 8:HEADER_BYTES + 16], '<' if sys.byteorder == 'little' else '>', None)


def _frames(data: bytes, path: Path, taken: int = 0) -> Iterator[tuple[Frame, bool]]:
    """(frame, whether all before it are right, too), behind the first `taken`. Frames of an earlier use of the file have other salts: they
    are not reached."""
    size, salts, order, running = _header(data, path)
    step = FRAME_HEADER_BYTES + size
    is_chained = running is not None
    if taken:
        running = struct.unpack_from('>II', data, HEADER_BYTES + (taken - 1) * step + 16)
    for offset in range(HEADER_BYTES + taken * step, len(data) - step + 1, step):
        header, page = data[offset:offset + FRAME_HEADER_BYTES], data[offset + FRAME_HEADER_BYTES:offset + step]
        stored: _Sum = struct.unpack_from('>II', header, 16)
        if header[8:16] == salts and running is not None and _checksum(page, _checksum(header[:8], running, order), order) == stored:
            number, commit = struct.unpack_from('>II', header)
            yield Frame(number, commit, page), is_chained
        else:
            is_chained = False
        running = stored


def _checksum(data: bytes, start: _Sum, order: str) -> _Sum:
    first, second = start
    words = struct.unpack(f'{order}{len(data) // 4}I', data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _page_size(path: Path) -> int:
    """As the database's own header says; SQLite's default where it says nothing that can be."""
    with path.open('rb') as file:
        size = int.from_bytes(file.read(18)[16:18], 'big')
    return size if size >= 512 and size & (size - 1) == 0 else 4096


def committed_frames(path: Path) -> int:
    """How many frames the log had when the last daemon committed to it, by the index of the log that outlives a killed process (not a
    reboot); 0 where it says nothing of the log as it is."""
    index, log = path.with_name(path.name + '-shm'), path.with_name(path.name + '-wal')
    if not index.exists() or index.stat().st_size < 96:
        return 0
    with index.open('rb') as file:
        header = file.read(96)
    # two equal copies of 48 bytes, in the machine's byte order: version, -, change counter, flags, mxFrame, pages, checksum, salts, checksum
    if header[:48] != header[48:] or struct.unpack_from('=I', header)[0] != _FORMAT or not header[12]:
        return 0
    frames = int(struct.unpack_from('=I', header, 16)[0])
    if not log.exists() or log.stat().st_size < HEADER_BYTES:
        return frames
    with log.open('rb') as file:
        found = _header(file.read(HEADER_BYTES), path)
    # a log that was begun anew since has other salts; one whose header is damaged says nothing
    return frames if found.sum is None or found.salts == header[32:40] else 0
