"""The names of conflict copies: `report.txt` → `report.conflict-laptop-20261128T021355Z.txt`.

Owns their form and its bounds. It must not know trees or what a conflict is: names are bytes, and who asks says whether one is free.

The copy keeps its ending, so that programs open it as what it is. A copy of a copy is named after the first original, so that no name grows.
"""
from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from ctxfs.storage.keys import NAME_MAX

HOST_MAX = 20
#: more than this after the last dot is no ending
ENDING_MAX = 32
_MARK = re.compile(rb'\.conflict-[A-Za-z0-9-]{1,%d}-[0-9]{8}T[0-9]{6}Z(?:-[0-9]{1,6})?(?=\.|$)' % HOST_MAX)


def host_part(host: str) -> str:
    """A host's name as far as it is readable in a file's name; '' where nothing of it is."""
    return re.sub(r'[^A-Za-z0-9]+', '-', host.partition('.')[0])[:HOST_MAX].strip('-')


def original_name(name: bytes) -> bytes:
    """The name without the marks that conflicts gave it."""
    return _MARK.sub(b'', name) or name


def copy_name(name: bytes, *, host: str, at_s: float, is_free: Callable[[bytes], bool], fits: Callable[[bytes], bool] = lambda name: True) -> bytes:
    """The first free one. `host` as `host_part` gives it; `fits`: whether the store takes a key with that name (a shorter one is tried)."""
    stem, ending = _split(original_name(name))
    stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at_s))
    number = 1
    while True:
        found = _bounded(stem, f'.conflict-{host}-{stamp}{f"-{number}" if number > 1 else ""}'.encode() + ending, fits)
        if is_free(found):
            return found
        number += 1


def _split(name: bytes) -> tuple[bytes, bytes]:
    stem, ending = os.path.splitext(name)
    if stem.endswith(b'.tar') and len(stem) > 4:
        stem, ending = stem[:-4], b'.tar' + ending
    return (stem, ending) if 1 < len(ending) <= ENDING_MAX and b' ' not in ending else (name, b'')


def _bounded(stem: bytes, rest: bytes, fits: Callable[[bytes], bool]) -> bytes:
    """A whole UTF-8 character is cut off at a time, where it is UTF-8."""
    text = stem.decode('utf-8', 'surrogateescape')
    while len(text) > 1 and (len(stem) + len(rest) > NAME_MAX or not fits(stem + rest)):
        text = text[:-1]
        stem = text.encode('utf-8', 'surrogateescape')
    return stem + rest
