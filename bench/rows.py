"""The rows of the bench: name, what it says, unit, goal.

Owns this table, which the table in docs/BENCHMARK.md repeats (a test compares them). It must not know how a row is measured: a *group*
measures some rows together, because one preparation serves them all.

The goals of flush-ceiling are those of flush on the machine for which they were set, where a client that cost nothing reached 2,955 files/s.
"""

from __future__ import annotations

from typing import NamedTuple

CTXFS = 'ctxfs'
LOCAL = 'local disk'
BARE = 'bare client'
BOTO = 'boto3'
RIVALS = ('rclone', 's3fs', 'juicefs')
#: as they spell themselves, where that is another name
LABELS = {'juicefs': 'JuiceFS'}


class Row(NamedTuple):
    """`basis`: the side that the value is a ratio to, measured in the same round ('' where the value is no ratio). `raw_unit`: of what is
    measured on either side. `floor`: the goal is a least value."""

    name: str
    group: str
    title: str
    unit: str
    goal: float
    is_floor: bool = False
    basis: str = ''
    raw_unit: str = 's'

    @property
    def direction(self) -> str:
        return '≥' if self.is_floor else '≤'


def _beside_disk(name: str, group: str, title: str, goal: float) -> Row:
    return Row(name, group, title, '× local disk', goal, basis=LOCAL)


def _rate_beside(name: str, group: str, title: str, goal: float, basis: str, raw_unit: str) -> Row:
    return Row(name, group, title, f'× {basis}', goal, True, basis, raw_unit)


ROWS = (
    Row('first-ls', 'scale', '100,000 files, 20 ms: first mount on a host until `ls` answers', 's', 0.5),
    Row('first-find', 'scale', '… until `find -printf` has printed mode, size, time and link of everything', 's', 4),
    Row('first-requests', 'scale', '… requests until then', 'requests', 110, raw_unit='requests'),
    Row('first-heads', 'scale', '… of which HEADs of files', 'requests', 0, raw_unit='requests'),
    Row('again-ls', 'scale', '100,000 files, 20 ms: second mount, nothing changed, until `ls`', 's', 0.5),
    Row('again-requests', 'scale', '… requests, also for a whole `find`', 'requests', 5, raw_unit='requests'),
    Row('one-change-requests', 'scale', 'one changed file among 100,000: requests of the periodic flush', 'requests', 3, raw_unit='requests'),
    Row('one-change-cpu', 'scale', '… CPU of daemon and workers', 'ms', 50, raw_unit='ms'),
    Row('million-ls', 'million', '1,000,000 files: first mount until `ls`', 's', 1),
    Row('million-memory', 'million', '… memory of daemon and workers after a full `find` (PSS)', 'MB', 400, raw_unit='MB'),
    Row('million-forgotten', 'million', '… after the kernel has forgotten', 'MB', 200, raw_unit='MB'),
    Row('first-byte', 'cold', 'first byte of a cold file, 20 ms: beyond the round trip', 'ms', 15, raw_unit='ms'),
    _rate_beside('cold-read', 'cold', 'cold sequential read of 1 GiB, beside ranged GETs of boto3 in parallel', 0.9, BOTO, 'MB/s'),
    _beside_disk('unpack', 'tree', 'unpack 2,500 files, 100 MB', 1.6),
    _beside_disk('find', 'tree', 'warm `find`', 1.8),
    _beside_disk('stat', 'tree', 'warm `stat` of each file', 1.5),
    _beside_disk('grep', 'tree', 'second `grep -r`', 1.6),
    _beside_disk('git', 'git', 'git clone, status and commit, 3,000 files', 1.8),
    _beside_disk('write', 'large', '512 MB sequential write and fsync', 1.2),
    _beside_disk('read', 'large', '512 MB warm read', 2),
    _rate_beside('random-read', 'random', '4 KiB random reads in a warm file (fio)', 0.5, LOCAL, 'reads/s'),
    _rate_beside('random-write', 'random', '4 KiB random writes in a warm file (fio)', 0.5, LOCAL, 'writes/s'),
    _rate_beside('create', 'create', 'create, write 100 B, close: one client', 0.35, LOCAL, 'files/s'),
    _rate_beside('create-busy', 'create-busy', 'the same while 5,000 files are uploaded', 0.8, 'idle', 'files/s'),
    Row('flush', 'flush', 'flush of 10,000 small new files', 'files/s', 2000, True, raw_unit='files/s'),
    _rate_beside('flush-ceiling', 'flush', '… beside what a client that costs nothing reaches', 0.68, BARE, 'files/s'),
    Row('flush-20ms', 'flush-20ms', 'flush of 10,000 small new files, 20 ms', 'files/s', 1500, True, raw_unit='files/s'),
    _rate_beside('flush-20ms-ceiling', 'flush-20ms', '… beside what a client that costs nothing reaches', 0.51, BARE, 'files/s'),
    Row('remove-requests', 'flush-20ms', '`rm -rf` of 10,000 uploaded files: requests of the flush', 'requests', 12, raw_unit='requests'),
    Row('unpack-up', 'unpack-up', 'unpack 2,450 files, 102 MB, until all is in the bucket', 's', 3.5),
    Row('unpack-up-20ms', 'unpack-up-20ms', 'the same, 20 ms', 's', 4),
    _rate_beside('flush-large', 'flush-large', 'flush of 1 GiB, beside a multipart upload of boto3', 0.9, BOTO, 'MB/s'),
    Row('status-idle', 'status', '`status` with 10,000 files queued, p99', 'ms', 20, raw_unit='ms'),
    Row('status-busy', 'status', '… while they are uploaded, p99', 'ms', 20, raw_unit='ms'),
    _rate_beside('find-busy', 'busy', '`find` while 5,000 files are uploaded', 0.7, 'idle', 'walks/s'),
    Row('archive-flush', 'archive', 'Archive mode: flush of 10,000 files of 4 KiB, 20 ms', 'files/s', 6000, True, raw_unit='files/s'),
    Row('archive-flush-requests', 'archive', '… requests', 'requests', 20, raw_unit='requests'),
    Row('archive-grep', 'archive', '… cold `grep -r` over them on another host', 's', 2),
    Row('archive-grep-requests', 'archive', '… requests', 'requests', 30, raw_unit='requests'),
    Row('archive-bytes', 'archive', '… bytes in the bucket for a source tree', '× File mode', 0.4, basis='File mode', raw_unit='bytes'),
)
BY_NAME = {row.name: row for row in ROWS}
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
