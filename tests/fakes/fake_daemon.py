"""A daemon with an empty file system: everything around a mount is real (FUSE, runtime directory, control socket), its content is not.

Owns the behaviours that tests ask for through $CTXFS_FAKE_DAEMON (JSON), so that launching, waiting and reporting can be tested for
endings that a real daemon must never have.

    raise: TEXT         an error that ctxfs expects, before mounting       bug: TEXT    one that it does not
    die: true           end without a word                                 hang: true   never become ready
    pending: [N, BYTES] what status shows until the flush is over          tasks: […]   more of status
    failed: […], explain: {…}, conflicts: […], events: […]     what these methods answer or begin with
    flush_until: PATH   the flush after the unmount lasts until PATH exists
    failure: TEXT       the flush fails with this cause
"""
from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pyfuse3
import trio

from ctxfs.config import MountOptions
from ctxfs.edge import control, launch, runtime_dir
from ctxfs.edge.mount_table import FSNAME, SUBTYPE
from ctxfs.edge.runtime_dir import Pending
from ctxfs.errors import NotFound


class Empty(pyfuse3.Operations):
    """A root directory without entries."""

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        attrs = pyfuse3.EntryAttributes()
        attrs.st_ino, attrs.st_mode, attrs.st_nlink = inode, stat.S_IFDIR | 0o755, 2
        attrs.st_uid, attrs.st_gid = os.getuid(), os.getgid()
        return attrs

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        return data

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return 1

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        return None


class Control:
    """The methods of ctxfs.edge.control.MountControl."""

    def __init__(self, options: MountOptions, behaviour: dict[str, Any]) -> None:
        self.options, self.behaviour = options, behaviour
        files, size = behaviour.get('pending', (0, 0))
        self.pending = Pending(files=files, bytes=size)
        self.state = 'mounted'
        self.paused = False

    async def status(self) -> dict[str, Any]:
        o = self.options
        return {'contextId': o.context_id, 'contextName': o.context_name, 'mountpoint': o.mountpoint, 'pid': os.getpid(),
                'store': o.store_url, 'stateDir': o.state_dir, 'state': self.state, 'conflicts': 0,
                'pending': {'files': self.pending.files, 'bytes': self.pending.bytes, 'oldestSeconds': 5},
                'localOnly': {'files': 0, 'bytes': 0}, 'paused': self.paused, 'failed': self.behaviour.get('failed', []),
                'tasks': self.behaviour.get('tasks', []),
                'unmountable': self.behaviour.get('unmountable', [])}

    async def mount_info(self) -> dict[str, Any]:
        return {'pid': os.getpid(), 'umask': os.umask(0o077), 'cwd': os.getcwd(), 'session': os.getsid(0),
                'stdin': os.readlink('/proc/self/fd/0'), 'log': os.readlink('/proc/self/fd/1'), 'argv': sys.argv}

    async def sync(self, path: str | None = None, mode: str = 'upload', wait: bool = True) -> dict[str, Any]:
        if path == 'missing':
            raise NotFound('no such file: missing')
        failure = self.behaviour.get('failure')
        if failure is None:
            self.pending = Pending()
        return {'ok': failure is None, 'files': 1, 'bytes': 2, 'message': failure or '', 'asked': [path, mode, wait]}

    async def wait(self, timeout: float | None = None, what: str = 'upload') -> dict[str, Any]:
        while self.pending.files:
            await trio.sleep(0.01)
        return {'ok': True, 'pending': {}, 'message': ''}

    async def info(self, context_id: str | None = None, path: str | None = None, task_type: str | None = None) -> dict[str, Any]:
        return {'contextStatusData': self.behaviour.get('tasks', [])}

    async def pause(self) -> dict[str, Any]:
        was, self.paused = self.paused, True
        return {'paused': True, 'was': was}

    async def resume(self) -> dict[str, Any]:
        was, self.paused = self.paused, False
        return {'paused': False, 'was': was}

    async def explain(self, path: str) -> dict[str, Any]:
        return {'path': path, **self.behaviour.get('explain', {})}

    async def conflicts(self) -> list[dict[str, Any]]:
        return self.behaviour.get('conflicts', [])

    async def resolve(self, path: str, keep: str) -> dict[str, Any]:
        return {'original': path, 'copy': path, 'keep': keep, 'asked': [path, keep]}

    async def statistics(self) -> dict[str, Any]:
        return {}

    async def policy(self) -> dict[str, Any]:
        return {}

    async def watch(self, kinds: list[str] | None = None) -> AsyncIterator[dict[str, Any]]:
        for event in self.behaviour.get('events', []):
            yield event
        await trio.sleep_forever()

    async def log_level(self, level: str | None = None) -> dict[str, Any]:
        was, self.level = getattr(self, 'level', 'info'), level or getattr(self, 'level', 'info')
        return {'level': self.level, 'was': was}

    async def cache_warm(self, path: str, wait: bool = True) -> dict[str, Any]:
        if path == 'missing':
            raise NotFound('/missing is neither in the bucket nor in the mount')
        return {'ok': True, 'files': 1, 'bytes': 2, 'message': '', 'asked': [path, wait]}

    async def cache_drop(self, path: str | None = None) -> dict[str, Any]:
        return {'entries': 1, 'bytes': 2, 'asked': [path]}

    async def shutdown(self) -> dict[str, Any]:
        return {}


def run(options: MountOptions, ready: launch.Readiness) -> int:
    behaviour = json.loads(os.environ.get('CTXFS_FAKE_DAEMON', '{}'))
    if 'raise' in behaviour:
        raise NotFound(behaviour['raise'])
    if 'bug' in behaviour:
        raise RuntimeError(behaviour['bug'])
    if 'die' in behaviour:
        print('last words', file=sys.stderr, flush=True)
        os._exit(3)
    if 'hang' in behaviour:
        threading.Event().wait()
    mount = runtime_dir.claim(options)
    pyfuse3.init(Empty(), options.mountpoint, {f'fsname={FSNAME}', f'subtype={SUBTYPE}', 'default_permissions'})
    runtime_dir.confirm(mount)
    trio.run(serve, options, ready, behaviour, str(mount.socket))
    return 0


async def serve(options: MountOptions, ready: launch.Readiness, behaviour: dict[str, Any], socket: str) -> None:
    about = Control(options, behaviour)
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, socket, control.methods_of(about))
        ready.ok()
        await pyfuse3.main()
        pyfuse3.close(unmount=False)
        about.state = 'flushing'
        while 'flush_until' in behaviour and not os.path.exists(behaviour['flush_until']):
            await trio.sleep(0.01)
        failure = behaviour.get('failure')
        if failure is None:
            about.pending = Pending()
        runtime_dir.finish(options, ok=failure is None, pending=about.pending, message=failure or 'everything is in the bucket')
        nursery.cancel_scope.cancel()


if __name__ == '__main__':
    sys.exit(launch.daemon_main(run))
