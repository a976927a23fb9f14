"""Frames on the pipe between the daemon and a transfer worker: 4 bytes of length, big-endian, then the body.

Owns the cutting of a byte stream into frames and the bound on their length. It must not know what is in a frame (protocol.py).
"""
from __future__ import annotations

import struct

from ctxfs.errors import Corrupted

#: the largest frame either side accepts; a longer one means that the stream is out of step
MAX_FRAME = 64 << 20
LENGTH = struct.Struct('>I')


class FrameReader:
    """Cuts a byte stream into frames: `feed` what arrived, then take the whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies of the frames that are complete now. Raises Corrupted on an impossible length."""
        buffer = self._buffer
        buffer += data
        bodies, start = [], 0
        while len(buffer) - start >= LENGTH.size:
            length, = LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME:
                raise Corrupted(f'a frame of {length} bytes on the worker pipe')
            begin = start + LENGTH.size
            if len(buffer) - begin < length:
                break
            bodies.append(bytes(buffer[begin:begin + length]))
            start = begin + length
        del buffer[:start]
        return bodies
