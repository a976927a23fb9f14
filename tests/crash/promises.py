"""What files may hold after a power cut: every version of each name, and from which one on nothing may be lost.

Owns the verdict. It must not know how the power went off, nor how a file is read.
"""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Promises:
    """Of each name: what it held, one after the other (None: no such file), and from which of these on nothing may be lost."""
    versions: dict[str, list[bytes | None]] = field(default_factory=dict)
    floor: dict[str, int] = field(default_factory=dict)

    def now(self, name: str, data: bytes | None) -> None:
        """About to be so."""
        self.versions.setdefault(name, [None]).append(data)
        self.floor.setdefault(name, 0)

    def latest(self, name: str) -> bytes | None:
        return self.versions.get(name, [None])[-1]

    def durable(self, *names: str) -> None:
        """What these, or all, hold now was promised to stay."""
        for name in names or list(self.versions):
            self.floor[name] = len(self.versions[name]) - 1

    def broken(self, *, at_first: dict[str, bytes], at_last: dict[str, bytes], before: dict[str, bytes], bucket: dict[str, bytes]) -> list[str]:
        """A line for each promise that was not kept: by what the host shows when it came up again, and when all is uploaded, and by what the
        bucket has then (`before`: when the power went off)."""
        lines = []
        for name, versions in self.versions.items():
            allowed, had = versions[self.floor[name]:], before.get(name)
            # where other bytes were written than were promised, anything may be there but less than the bucket has
            is_open = any(version is not None for version in allowed[1:])
            if not is_open and at_first.get(name) not in allowed:
                lines.append(f'{name}: shows {told(at_first.get(name), versions)}, and {told(allowed[0], versions)} was promised')
            is_less = not is_open or (had is not None and at_last.get(name) != had)
            if is_less and not _is_legal(at_last.get(name), allowed):
                lines.append(f'{name}: shows {told(at_last.get(name), versions)} when all is uploaded, the bucket had {told(had, versions)}')
            if had is not None:
                lines += [f'{name}: {line}' for line in _lost_in_bucket(had, bucket.get(name), versions, allowed)]
        return lines


def _is_legal(data: bytes | None, allowed: list[bytes | None]) -> bool:
    """A whole version, or what was promised and a part of what was appended to it since."""
    if data is None or data in allowed:
        return data in allowed
    floor = allowed[0]
    return floor is not None and len(data) > len(floor) and any(later is not None and later.startswith(data) for later in allowed[1:])


def _lost_in_bucket(had: bytes, has: bytes | None, versions: list[bytes | None], allowed: list[bytes | None]) -> list[str]:
    if has not in versions and _is_legal(has, allowed):
        return []
    if has not in versions:
        return [f'the bucket had {told(had, versions)} and has {told(has, versions)}']
    if has is not None and _last_index(has, versions) < versions.index(had):
        return [f'the bucket went back from {told(had, versions)} to {told(has, versions)}']
    return []


def _last_index(data: bytes, versions: list[bytes | None]) -> int:
    return len(versions) - 1 - versions[::-1].index(data)


def told(data: bytes | None, versions: list[bytes | None]) -> str:
    if data in versions:
        return f'version {versions.index(data)} of {len(versions)}'
    assert data is not None
    return f'{len(data)} bytes, {data.count(0)} of them zero'
