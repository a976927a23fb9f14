"""Values as people read them: bytes, times, counts, names. Owns these spellings; it must not know where they are shown."""
from __future__ import annotations

import math


def human_bytes(count: float) -> str:
    """`999 bytes`, `1.5 KiB`, `20 GiB`."""
    if count < 1024:
        return f'{count:.0f} byte{"" if count == 1 else "s"}'
    power = min(5, int(math.log2(count)) // 10)
    count /= 1 << 10 * power
    return f'{count:.{0 if count >= 10 else 1}f} {"KMGTP"[power - 1]}iB'


def human_seconds(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d`."""
    for size, unit in ((86400, 'd'), (3600, 'h'), (60, 'min')):
        if seconds >= 2 * size:
            return f'{seconds / size:.0f} {unit}'
    return f'{seconds:.0f} s'


def human_files(count: int) -> str:
    return f'{count} file{"" if count == 1 else "s"}'


def printable(text: str) -> str:
    """For a terminal: no control characters, no broken encoding."""
    text = text.encode('utf-8', 'backslashreplace').decode()
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
