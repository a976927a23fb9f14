"""The consistency checker: whether a state directory keeps what schema.sql promises, and agrees with the bucket.

Owns the list of what is compared and the severity of each contradiction. It changes nothing, and must not know who asks (`ctxfs doctor
--state`, the crash tests), nor how anything is mended (recovery when mounting; repair).

Names and journal are read in one snapshot of the tree database, so they can be checked under a running daemon too. What a crash may leave
behind, and the next mount settles, is told apart from what no crash can explain.
"""
from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from ctxfs.errors import Corrupted, CtxfsError
from ctxfs.policy import BWList, SyncPolicy
from ctxfs.rules import Rules
from ctxfs.storage import consistency_keys, made_log
from ctxfs.storage.consistency_rules import RULES, Problem, Severity, several
from ctxfs.storage.inode import Content
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import SCHEMA_VERSION


class Bucket(NamedTuple):
    """Where the context's objects are: `prefix` is that of the mount's root, with its slash. `members`: (key, etag) of what lies in archives, in
    the order of keys."""
    store: ObjectStore
    prefix: str
    members: Sequence[tuple[str, str]] = ()


def check_state(state_dir: Path, *, is_running: bool = False) -> list[Problem]:
    """Everything in the directory that contradicts. `is_running`: a daemon uses it, so what a daemon has in the middle of its work is no
    finding. Raises NotFound where there is no tree database."""
    try:
        with _reader(state_dir) as reader:
            damage = list(_database(reader))
            if damage:
                return damage       # nothing that is read from it would mean anything
            with reader.snapshot():
                problems = [*_rules(reader, is_running), *consistency_keys.check_names(reader, _rules_of(reader))]
                staged = _staged(reader)
                logged: set[int] = set() if is_running else {one.ino for one in made_log.left_at(state_dir, reader)}
            problems += _bytes(reader, Staging(state_dir / 'staging', create=False), staged, logged, is_running)
            return [*problems, *_quarantine(state_dir / 'quarantine')]
    except Corrupted as error:
        return [Problem(Severity.WRONG, 'database', str(error))]


def check_against_bucket(state_dir: Path, bucket: Bucket) -> list[Problem]:
    """What the bucket has otherwise than is known here. For a directory that no daemon uses. Raises as TreeReader, and what the store
    raises."""
    with _reader(state_dir) as reader, reader.snapshot():
        return list(consistency_keys.check_bucket(reader, _with_members(bucket)))


def _with_members(bucket: Bucket) -> Iterator[tuple[str, str]]:
    """(key, etag) of all that is there, a member before an object whose place it has taken."""
    both = heapq.merge(((key, 0, etag) for key, etag in bucket.members),
                       ((key, 1, etag) for key, etag in consistency_keys.listed(bucket.store, bucket.prefix)))
    last = None
    for key, _, etag in both:
        if key != last:
            yield key, etag
        last = key


@contextmanager
def _reader(state_dir: Path) -> Iterator[TreeReader]:
    reader = TreeReader(state_dir / 'tree.db')
    try:
        yield reader
    finally:
        reader.close()


def is_sound(problems: Iterable[Problem]) -> bool:
    """Nothing in it but what the next mount settles by itself."""
    return all(problem.severity is not Severity.WRONG for problem in problems)


def _database(reader: TreeReader) -> Iterator[Problem]:
    version = reader.meta('schema_version')
    if version != SCHEMA_VERSION:
        is_older = isinstance(version, int) and version < SCHEMA_VERSION
        yield Problem(Severity.NOTE if is_older else Severity.WRONG, 'database', f'it has schema version {version}, and this ctxfs reads '
                      f'{SCHEMA_VERSION}: {"mount it once" if is_older else "use the ctxfs that wrote it"}')
        return
    for text in reader.integrity_faults():
        yield Problem(Severity.WRONG, 'database', f'SQLite says: {text}')


def _rules(reader: TreeReader, is_running: bool) -> Iterator[Problem]:
    for rule in RULES:
        if not (is_running and rule.severity is Severity.LEFT):
            yield from several(rule.severity, rule.area, [rule.text.format(*map(_shown, row)) for row in reader.rows(rule.sql)])


def _shown(value: object) -> object:
    return value.decode('utf-8', 'backslashreplace') if isinstance(value, bytes) else value


def _rules_of(reader: TreeReader) -> Rules | None:
    """The white lists that the tree agrees with; None while it was being made to agree with others."""
    found = reader.meta('white_lists')
    if found is None:
        return Rules(SyncPolicy())
    try:
        return Rules(SyncPolicy(bw_list=msgspec.json.decode(found, type=BWList)))
    except (msgspec.MsgspecError, CtxfsError):
        return None


# --- bytes -------------------------------------------------------------------------------------------------------------------------

class _Row(NamedTuple):
    content: int
    size: int
    nlink: int


def _staged(reader: TreeReader) -> dict[int, _Row]:
    return {row[0]: _Row(*row[1:]) for row in reader.rows(
        'SELECT ino, content, size, nlink FROM inode WHERE content IN (?, ?)', (Content.STAGED, Content.SEALED))}


def _bytes(reader: TreeReader, staging: Staging, staged: dict[int, _Row], logged: set[int], is_running: bool) -> Iterator[Problem]:
    """`logged`: whose row the next mount makes."""
    files = {ino: size for ino, size, _ in staging.inos()}
    missing = [ino for ino in staged if ino not in files and not (is_running and _is_settled(reader, staging, ino))]
    yield from several(Severity.WRONG, 'bytes', [f'inode {ino} is staged, and has no staging file: its bytes are lost' for ino in missing])
    yield from several(Severity.WRONG, 'bytes', [f'{path} is no regular file' for path in _strange(staging)])
    if is_running:
        return
    yield from several(Severity.WRONG, 'bytes', [
        f'inode {ino} was uploaded with {row.size} bytes, and its staging file has {files[ino]}'
        for ino, row in staged.items() if row.content == Content.SEALED and row.nlink and files.get(ino, row.size) != row.size])
    yield from several(Severity.LEFT, 'bytes', [
        f'inode {ino} has {row.size} bytes, and its staging file {files[ino]}, which counts'
        for ino, row in staged.items() if row.content == Content.STAGED and files.get(ino, row.size) != row.size])
    yield from several(Severity.LEFT, 'bytes', [f'staging file {ino} of {files[ino]} bytes belongs to nobody'
                                               for ino in files if ino not in staged and ino not in logged])
    yield from several(Severity.LEFT, 'bytes', [f'{path} is what a transfer was making' for path in staging.leftovers()])


def _is_settled(reader: TreeReader, staging: Staging, ino: int) -> bool:
    """A file that was staged when the rows were read: it was uploaded or removed since, or its file is there now."""
    return os.path.exists(staging.path(ino)) or ino not in _staged(reader)


def _strange(staging: Staging) -> list[str]:
    return [path for ino, _, _ in staging.inos() if not stat.S_ISREG(os.lstat(path := staging.path(ino)).st_mode)]


def _quarantine(directory: Path) -> Iterator[Problem]:
    kept = sum(not name.endswith('.json') for name in os.listdir(directory)) if directory.is_dir() else 0
    if kept:
        yield Problem(Severity.NOTE, 'bytes', f'{kept} file{"" if kept == 1 else "s"} that a power cut or a lost database left in {directory}: '
                                              'look at them, then remove the directory')
