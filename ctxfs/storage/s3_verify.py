"""Whether the bytes of a response are those of the object: by everything that came along with them.

Owns the rules. It must not know how a request is made or made again.

    length, Content-Range   what was asked for, of an object of one size
    stamp                   the SHA-256 of the whole, or sums of pieces (piece_sums.py), in the metadata of what ctxfs wrote. It is *bound* where
                            it names the very etag that the response has. Other tools rewrite objects and keep their metadata, so one that is
                            not bound may be another version's: then it only raises a doubt
    etag                    the MD5 of an object that came in one piece and is not encrypted by KMS or with a customer's key, on servers whose
                            etags are that (docs.aws.amazon.com, "Object": ETag)
"""
from __future__ import annotations

import enum
import hashlib
import re
from typing import NamedTuple

from ctxfs.storage import piece_sums
from ctxfs.storage.posix_meta import decode_stamp
from ctxfs.storage.s3_http import Response

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_RANGE = re.compile(r'bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)')


class Verdict(enum.Enum):
    RIGHT = 'right'
    #: nothing that came along says anything
    UNPROVEN = 'unproven'
    #: a stamp that may be another version's, or an etag that may be no MD5, speaks against it
    DOUBTED = 'doubted'
    DAMAGED = 'damaged'


class Part(NamedTuple):
    """`data` from offset `start` of an object of `size` bytes (-1: the server does not say)."""
    data: bytes
    start: int
    size: int

    @property
    def is_whole(self) -> bool:
        return len(self.data) == self.size


def part_of(response: Response, start: int, stop: int | None) -> Part | None:
    """What a response to a GET of [start, stop) brought; None when that is not what was asked for. 200 is everything, whatever was asked."""
    if response.status != 206:
        return Part(response.body, 0, len(response.body))
    match = _RANGE.fullmatch(response.headers.get('Content-Range', '').strip())
    if match is None:
        return None
    first, last, size = int(match[1]), int(match[2]), -1 if match[3] == '*' else int(match[3])
    wanted = last + 1 if size < 0 else size if stop is None else min(stop, size)
    return Part(response.body, start, size) if (first, last + 1, len(response.body)) == (start, wanted, wanted - start) else None


def judge(response: Response, part: Part, *, etag: str, are_md5: bool | None) -> Verdict:
    """`etag`: the response's; `are_md5`: whether this server's etags are MD5s, None where that is not known."""
    by_stamp = _by_stamp(response, part, etag)
    if by_stamp is Verdict.RIGHT or by_stamp is Verdict.DAMAGED:
        return by_stamp
    by_etag = _by_etag(response, part, etag, are_md5)
    return by_stamp if by_etag is Verdict.UNPROVEN else by_etag


def _by_stamp(response: Response, part: Part, etag: str) -> Verdict:
    stamp = decode_stamp({'ctxfs': response.headers.get('x-amz-meta-ctxfs') or response.headers.get('x-oss-meta-ctxfs') or ''})
    if stamp is None:
        return Verdict.UNPROVEN
    sums = piece_sums.decode(stamp.sums) if stamp.sums else None
    if part.is_whole and stamp.sha256:
        is_right, is_wrong = (same := hashlib.sha256(part.data).hexdigest() == stamp.sha256), not same
    elif sums is not None:
        is_wrong = sums.disagrees(part.data, part.start, size=part.size)
        is_right = not is_wrong and sums.covers(part.start, part.start + len(part.data), size=part.size)
    else:
        return Verdict.UNPROVEN
    if is_wrong:
        return Verdict.DAMAGED if stamp.etag and stamp.etag == etag.strip('"') else Verdict.DOUBTED
    return Verdict.RIGHT if is_right else Verdict.UNPROVEN


def _by_etag(response: Response, part: Part, etag: str, are_md5: bool | None) -> Verdict:
    wanted = md5_in(etag)
    if not part.is_whole or wanted is None or are_md5 is False or is_encrypted(response):
        return Verdict.UNPROVEN
    if hashlib.md5(part.data, usedforsecurity=False).hexdigest() == wanted:
        return Verdict.RIGHT
    return Verdict.DAMAGED if are_md5 else Verdict.DOUBTED


def md5_in(etag: str) -> str | None:
    """The MD5 that an etag may be."""
    match = _MD5.fullmatch(etag)
    return match[1] if match else None


def is_encrypted(response: Response) -> bool:
    return bool(response.headers.get('x-amz-server-side-encryption', '').startswith('aws:kms')
                or response.headers.get('x-amz-server-side-encryption-customer-algorithm'))


class EtagMaker:
    """The etag that an object in parts of `step` bytes gets on AWS and most servers like it (0: in one piece)."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._current = hashlib.md5(usedforsecurity=False)
        self._filled = 0
        self._parts: list[bytes] = []

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._step:
            part = view[:self._step - self._filled]
            self._current.update(part)
            self._filled += len(part)
            view = view[len(part):]
            if self._filled == self._step:
                self._end_part()
        if view:
            self._current.update(view)

    def _end_part(self) -> None:
        self._parts.append(self._current.digest())
        self._current, self._filled = hashlib.md5(usedforsecurity=False), 0

    def etag(self) -> str:
        """Without quotes, when everything was given."""
        if not self._step:
            return self._current.hexdigest()
        if self._filled:
            self._end_part()
        return f'{hashlib.md5(b"".join(self._parts), usedforsecurity=False).hexdigest()}-{len(self._parts)}'
