"""Rows of everyday work beside the local disk: trees, git, a large file, random access, creation.

Owns which steps follow each other. It must not know how they are timed (contest.py).
"""

from __future__ import annotations

from bench.contest import Step, beside_disk
from bench.work import creating, find, git_session, grep, make_repository, random_access, reading, stat_all, unpacking, writing
from bench.world import World


def tree(world: World) -> None:
    beside_disk(world, [Step('unpack', unpacking(world.archive())), Step('find', find, True), Step('stat', stat_all, True), Step('grep', grep, True)])


def git(world: World) -> None:
    repository = world.directory / 'repository'
    if not repository.exists():
        make_repository(repository, world.sizes.repository)
    beside_disk(world, [Step('git', git_session(repository))])


def large(world: World) -> None:
    size = world.sizes.large
    beside_disk(world, [Step('write', writing(size)), Step('read', reading(size), True)], keep=False)


def random(world: World) -> None:
    size, seconds = world.sizes.large // 2, world.sizes.fio_seconds
    beside_disk(world, [Step('random-read', random_access('randread', size, seconds)),
                        Step('random-write', random_access('randwrite', size, seconds))], keep=False)


def create(world: World) -> None:
    beside_disk(world, [Step('create', creating(world.sizes.create))])
