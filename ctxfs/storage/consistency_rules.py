"""What the rows of a tree database must be to each other: schema.sql's invariants, each as a query for the rows that break it.

Owns these queries and their severity. It must not know the bucket, the staging files or who asks; a query that finds nothing is fine.
"""
from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.storage.inode import Content, Reason

#: of one kind so many are told one by one
LISTED = 20


class Severity(enum.Enum):
    """WRONG: no crash of ctxfs explains it, only a damaged disk or a fault of ctxfs. LEFT: an unclean end leaves it, and the next mount
    settles it. NOTE: nothing is wrong here: what is in the bucket is somebody else's doing, and the next mount takes it over."""
    WRONG = 'wrong'
    LEFT = 'left'
    NOTE = 'note'


class Problem(NamedTuple):
    """One contradiction. `area`: database, names, bytes, journal, bucket."""
    severity: Severity
    area: str
    text: str


def several(severity: Severity, area: str, texts: Sequence[str]) -> Iterator[Problem]:
    """One for each text, but a count for those beyond LISTED."""
    for text in texts[:LISTED]:
        yield Problem(severity, area, text)
    if len(texts) > LISTED:
        yield Problem(severity, area, f'… and {len(texts) - LISTED} more like {texts[LISTED]}')


class Rule(NamedTuple):
    """`sql` selects what breaks it; `text` has a place for each column."""
    severity: Severity
    area: str
    text: str
    sql: str


_DIR = '(mode & 61440) = 16384'
_FILE = '(mode & 61440) = 32768'
_LINK = '(mode & 61440) = 40960'
_RESERVED = RESERVED_DIR.rstrip('/').encode().hex()
_ALL_REASONS = Reason.CONTENT | Reason.NAMES | Reason.ATTRS | Reason.SUBTREE | Reason.INDEX

_NAMES = (
    ('the root directory is missing',
     f'SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE ino = {ROOT_INO} AND {_DIR})'),
    ('{1} in directory {0} is inode {2}, which does not exist',
     'SELECT parent, name, ino FROM dentry d WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = d.ino)'),
    ('{1} lies in inode {0}, which is no directory that has a name',
     f'SELECT parent, name FROM dentry d WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = d.parent AND {_DIR} AND nlink > 0)'),
    ('{1} in directory {0} is no name',
     "SELECT parent, name FROM dentry WHERE typeof(name) <> 'blob' OR length(name) NOT BETWEEN 1 AND 255 OR instr(name, x'2f') "
     f"OR instr(name, x'00') OR name IN (x'2e', x'2e2e') OR (parent = {ROOT_INO} AND name = x'{_RESERVED}')"),
    ('inode {0} counts {1} links and has {2} names',
     f'SELECT ino, nlink, (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names FROM inode i WHERE NOT {_DIR} AND nlink <> names'),
    ('directory {0} counts {1} links, and {2} come from its entries',
     f'SELECT ino, nlink, 2 + (SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino WHERE d.parent = i.ino AND (c.mode & 61440) = 16384) '
     f'AS links FROM inode i WHERE {_DIR} AND nlink > 0 AND nlink <> links'),
    ('directory {0} has {1} names',
     f'SELECT ino, (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) AS names FROM inode i WHERE {_DIR} '
     f'AND names <> (nlink > 0 AND ino <> {ROOT_INO})'),
    ('directory {0} is not below the root',
     f'WITH RECURSIVE reached(ino) AS (SELECT {ROOT_INO} UNION SELECT d.ino FROM reached r JOIN dentry d ON d.parent = r.ino '
     f'JOIN inode i ON i.ino = d.ino WHERE {_DIR}) SELECT ino FROM inode WHERE {_DIR} AND nlink > 0 AND ino NOT IN reached'),
    ('inode number {0} is in use, and the next new one is to be {1}',
     "SELECT last, next FROM (SELECT max(ino) AS last, (SELECT value FROM meta WHERE name = 'next_ino') AS next FROM inode) "
     'WHERE last >= coalesce(next, 2)'),
    ('inode {0} of mode {1} has content state {2}',
     f'SELECT ino, mode, content FROM inode WHERE content NOT BETWEEN {Content.NONE} AND {Content.CLEAN} OR {_FILE} <> (content <> {Content.NONE})'),
    ('symbolic link {0} has no target', f'SELECT ino FROM inode WHERE {_LINK} AND target IS NULL'),
)
_JOURNAL = (
    ('inode {0} is pending for the reasons {1}, of which some are none',
     f'SELECT ino, reason FROM pending WHERE reason = 0 OR reason & ~{_ALL_REASONS}'),
    ('inode {0} has bytes that the bucket does not have, and the journal does not say so',
     f'SELECT ino FROM inode i WHERE content = {Content.STAGED} AND nlink > 0 AND NOT local '
     f'AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.ino = i.ino AND p.reason & {Reason.CONTENT})'),
    ('inode {0} is to be uploaded, and object {1} passes for its content already',
     f'SELECT i.ino, o.key FROM inode i JOIN object o ON o.ino = i.ino AND o.revision = i.revision '
     f'WHERE content = {Content.STAGED} AND nlink > 0 AND NOT local AND NOT doomed'),
    ('object {0} has revision {1} of inode {2}, which is at {3}',
     'SELECT key, o.revision, o.ino, i.revision FROM object o JOIN inode i ON i.ino = o.ino WHERE NOT doomed AND o.revision > i.revision'),
    ('the content of inode {0} is in no object that is known',
     f'SELECT ino FROM inode i WHERE content = {Content.CLEAN} AND nlink > 0 '
     'AND NOT EXISTS (SELECT 1 FROM object o WHERE o.ino = i.ino AND o.revision = i.revision)'),
    ('inode {0} has {1} bytes, and object {2}, its content, has {3}',
     f'SELECT i.ino, i.size, key, o.size FROM inode i JOIN object o ON o.ino = i.ino AND o.revision = i.revision '
     f'WHERE content = {Content.CLEAN} AND nlink > 0 AND i.size <> o.size'),
    ('object {0} belongs to inode {1}, which has no name',
     'SELECT key, o.ino FROM object o WHERE NOT doomed AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = o.ino AND nlink > 0)'),
    ('object {0} is doomed in a way that there is not: {1}', 'SELECT key, doomed FROM object WHERE doomed NOT IN (0, 1, 2)'),
    ('inode {0} stays on this host, and is pending', f'SELECT ino FROM inode JOIN pending USING (ino) WHERE local AND NOT {_DIR}'),
    ('inode {0} stays on this host, and has object {1}', 'SELECT i.ino, key FROM inode i JOIN object o ON o.ino = i.ino WHERE local AND NOT doomed'),
    ('inode {0} is of a type that stays on this host, and does not', f'SELECT ino FROM inode WHERE NOT local AND NOT ({_DIR} OR {_FILE} OR {_LINK})'),
)
_LEFT = (
    ('names', 'inode {0} of {1} bytes has no name: it was open when the daemon ended', 'SELECT ino, size FROM inode WHERE nlink = 0'),
    ('journal', 'inode {0} is pending, and has no name',
     'SELECT ino FROM pending p WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = p.ino AND nlink > 0)'),
    ('bucket', 'whether the write of {0} arrived is not known: the bucket will be asked', 'SELECT key FROM attempt'),
)
RULES: tuple[Rule, ...] = (*(Rule(Severity.WRONG, 'names', text, sql) for text, sql in _NAMES),
                           *(Rule(Severity.WRONG, 'journal', text, sql) for text, sql in _JOURNAL),
                           *(Rule(Severity.LEFT, area, text, sql) for area, text, sql in _LEFT))
