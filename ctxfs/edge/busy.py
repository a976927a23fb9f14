"""Which processes keep a mount point busy: their working directory, root, executable, open files or mappings are on it.

Owns the walk over /proc. It must not touch the mount itself: it reads only the links and maps that the kernel shows (proc(5)).
"""
from __future__ import annotations

import os

import msgspec

MAX_HOLDERS = 5


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    command: str
    what: str


def holders_of(mountpoint: str, limit: int = MAX_HOLDERS) -> list[Holder]:
    """At most `limit` processes, of those that this user may look into (its own; all for root)."""
    found = []
    for pid in sorted(int(name) for name in os.listdir('/proc') if name.isdigit()):
        what = _what_holds(f'/proc/{pid}', mountpoint)
        if what:
            found.append(Holder(pid=pid, command=_command(pid), what=what))
        if len(found) == limit:
            break
    return found


def describe(mountpoint: str) -> str:
    """`bash (pid 12, working directory /m/x), …`; empty when nobody is found."""
    return ', '.join(f'{h.command} (pid {h.pid}, {h.what})' for h in holders_of(mountpoint))


def _what_holds(proc: str, mountpoint: str) -> str:
    for link, name in (('cwd', 'working directory'), ('root', 'root directory'), ('exe', 'program')):
        target = _target(f'{proc}/{link}')
        if _is_below(target, mountpoint):
            return f'{name} {target}'
    try:
        descriptors = os.listdir(f'{proc}/fd')
    except OSError:
        return ''       # gone, or not ours to look into
    for number in descriptors:
        target = _target(f'{proc}/fd/{number}')
        if _is_below(target, mountpoint):
            return f'open file {target}'
    return _mapping(proc, mountpoint)


def _mapping(proc: str, mountpoint: str) -> str:
    """A file may stay mapped after its descriptor was closed."""
    try:
        with open(f'{proc}/maps', 'rb') as maps:
            for line in maps:
                fields = line.rstrip(b'\n').split(maxsplit=5)
                target = os.fsdecode(fields[5]) if len(fields) == 6 else ''
                if _is_below(target, mountpoint):
                    return f'mapped file {target}'
    except OSError:
        pass            # the process ended meanwhile
    return ''


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ''


def _is_below(target: str, mountpoint: str) -> bool:
    return target == mountpoint or target.startswith(mountpoint.rstrip('/') + '/')


def _command(pid: int) -> str:
    try:
        with open(f'/proc/{pid}/comm', encoding='utf-8', errors='replace') as file:
            return file.read().strip()
    except OSError:
        return '?'
