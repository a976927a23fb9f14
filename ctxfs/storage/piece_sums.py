"""Checksums of the pieces of an object, few and small enough to travel in its metadata: what a part of it that was fetched is verified with.

Owns their size, their spelling and the comparison. It must not know stores. A ranged GET is answered with the object's metadata, so they cost
no request, and they belong to exactly the version that the bytes are of.

CRC-32 finds every error of up to 32 bits in a row, and of the others all but one in four thousand million. The pieces are 1 MiB, a block of
the block cache, in objects of up to PIECES MiB; larger ones have larger pieces, and only a piece that was fetched whole can be verified.
"""
from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

UNIT = 1 << 20
#: 960 characters of the 2,048 that S3 allows for all metadata
PIECES = 180
#: smaller objects are verified as a whole
LEAST = UNIT
_STEP_MAX = 1 << 20


class Sums(NamedTuple):
    """`step` bytes in each piece but the last."""
    step: int
    values: tuple[int, ...]

    def encode(self) -> str:
        packed = struct.pack(f'>{len(self.values)}I', *self.values)
        return f'{self.step // UNIT}.{base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")}'

    def disagrees(self, data: bytes, start: int, *, size: int) -> bool:
        """Whether `data`, from offset `start` of an object of `size` bytes, is not what was summed up. Pieces that it has only a part of say
        nothing, and so do sums of another size."""
        if len(self.values) != -(-size // self.step):
            return False
        view = memoryview(data)
        return any(zlib.crc32(view[begin - start:end - start]) != self.values[number]
                   for number, begin, end in self._whole_pieces(start, start + len(data), size))

    def covers(self, start: int, stop: int, *, size: int) -> bool:
        """Whether every byte of [start, stop) is verified by `disagrees`."""
        pieces = list(self._whole_pieces(start, stop, size))
        return bool(pieces) and pieces[0][1] == start and pieces[-1][2] == stop and len(self.values) == -(-size // self.step)

    def _whole_pieces(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(number, begin, end) of those inside [start, stop)."""
        for number in range(-(-start // self.step), -(-size // self.step)):
            begin, end = number * self.step, min((number + 1) * self.step, size)
            if end > stop:
                return
            yield number, begin, end


def step_for(size: int) -> int:
    """Bytes in a piece: the smallest power of two MiB with which PIECES are enough."""
    step = UNIT
    while -(-size // step) > PIECES:
        step *= 2
    return step


class Summer:
    """Sums up an object of `size` bytes from its pieces in order, however they are cut."""

    def __init__(self, size: int) -> None:
        self._step = step_for(size)
        self._values: list[int] = []
        self._current, self._filled = 0, 0

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[:self._step - self._filled]
            self._current = zlib.crc32(part, self._current)
            self._filled += len(part)
            view = view[len(part):]
            if self._filled == self._step:
                self._end_piece()

    def _end_piece(self) -> None:
        self._values.append(self._current)
        self._current, self._filled = 0, 0

    def sums(self) -> Sums:
        """When everything was given."""
        if self._filled:
            self._end_piece()
        return Sums(self._step, tuple(self._values))


def decode(text: str) -> Sums | None:
    """What `Sums.encode` made; None for anything else, because anybody can write metadata."""
    unit, _, rest = text.partition('.')
    if not (unit.isascii() and unit.isdigit() and len(unit) < 8 and 0 < int(unit) <= _STEP_MAX and rest.isascii()):
        return None
    try:
        packed = base64.b64decode(rest + '=' * (-len(rest) % 4), altchars=b'-_', validate=True)
    except (ValueError, binascii.Error):
        return None
    if not packed or len(packed) % 4:
        return None
    return Sums(int(unit) * UNIT, struct.unpack(f'>{len(packed) // 4}I', packed))
