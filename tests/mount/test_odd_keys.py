"""Keys that no file system can hold: shown with their reason, never followed, never lost.

Owns the list of such keys. It must not know how the mount decides; `ctxfs status --json` tells it, under `unmountable`.
"""
from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE, Site

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket')

#: keys that have no place in a tree, whatever else is there
UNMOUNTABLE = ('a//b', '/leading', '//', '../outside', 'x/../../outside', '.', './x', '..', 'x/.', 'L' * 256, f'deep/{"ü" * 128}', '.ctxfs/foo',
               'withcontent/', 'file/below', 'trailing//')
#: keys that look odd and are ordinary names
MOUNTABLE = {'ctrl\x01\x1f': b'ctrl\x01\x1f', 'new\nline': b'new\nline', 'tab\there': b'tab\there', '...': b'...', '.hidden': b'.hidden',
             'back\\slash': b'back\\slash', ' ': b' ', 'a%2Fb': b'a%2Fb', 'a+b&c=d?e#f': b'a+b&c=d?e#f', '\u201bFF': b'\xff', 'café': 'café'.encode(),
             '\u201b2F': '\u201b2F'.encode(), '\u201b00': '\u201b00'.encode(), '\u201b\u201bFF': '\u201bFF'.encode(), 'x\u201b': 'x\u201b'.encode(),
             '\U0001f600': '\U0001f600'.encode(), '\x7f': b'\x7f', 'N' * 255: b'N' * 255, "quote'\"<>|*": b"quote'\"<>|*", '~': b'~'}


def fill(site: Site) -> dict[str, bytes]:
    """A context with all of them, and the bodies by key."""
    site.host().create_context('odd')
    prefix = f'contexts/{site.context_id("odd")}/'
    bodies = {key: f'body of {key!r}'.encode() for key in (*UNMOUNTABLE, *MOUNTABLE, 'file', 'plain/f')}
    for key, body in bodies.items():
        site.bucket().put(prefix + key, body)
    return {prefix + key: body for key, body in bodies.items()}


def check_kept(site: Site, bodies: dict[str, bytes]) -> None:
    bucket = site.bucket()
    held = {key: bucket.body(key) for key in bucket.keys(next(iter(bodies)).split('/', 2)[0] + '/') if key in bodies}
    lost = sorted(bodies.keys() - held.keys())
    assert lost == []
    assert {key for key in bodies if held[key] != bodies[key]} == set()


def walk(root: Path) -> dict[bytes, bytes]:
    """Every regular file below root with its content; raises where anything cannot be looked at."""
    found = {}

    def fail(e: OSError) -> None:
        raise e

    for directory, _, files in os.walk(os.fsencode(root), onerror=fail):
        for name in files:
            path = os.path.join(directory, name)
            assert stat.S_ISREG(os.lstat(path).st_mode)
            with open(path, 'rb') as f:
                found[os.path.relpath(path, os.fsencode(root))] = f.read()
    return found


def test_odd_keys_are_shown_or_reported_and_never_lost(site: Site) -> None:
    """Ordinary names are in the tree, the others in `status` with a reason; nothing appears outside, and a write loses none of them."""
    bodies = fill(site)
    prefix = next(iter(bodies)).rpartition('a//b')[0]
    beside = sorted(os.listdir(site.work))
    host, at = site.host(), site.mount_point()
    host.mount('odd', at)
    tree = walk(at)
    for key, name in MOUNTABLE.items():
        assert tree.get(name) == bodies[prefix + key], key
    eventually('the listing is complete', lambda: host.status(at)['remote']['isComplete'])
    reported = {u['key'].removeprefix(prefix): u['reason'] for u in host.status(at)['unmountable']}
    assert all(reason.strip() for reason in reported.values())
    expected = set(UNMOUNTABLE) - {'file/below'}
    assert expected <= reported.keys()
    # `file` and `file/below` exclude each other: one is shown, the other reported.
    shown = {key for key in ('file', 'file/below') if tree.get(key.encode()) == bodies[prefix + key]}
    assert len(shown) == 1 and {'file', 'file/below'} - shown <= reported.keys()
    assert reported.keys() <= expected | {'file', 'file/below'}
    assert b'plain/f' in tree
    (at / 'plain/new').write_text('new')
    host.unmount(at)
    assert set(os.listdir(site.work)) - set(beside) <= {at.name, 'state-1'}
    check_kept(site, bodies)
    assert site.bucket().body(prefix + 'plain/new') == b'new'


def test_removing_all_that_is_seen_leaves_the_unseen(site: Site) -> None:
    """rm -rf of everything in the mount removes the objects that were shown, and none of those that were not."""
    bodies = fill(site)
    prefix = next(iter(bodies)).rpartition('a//b')[0]
    host, at = site.host(), site.mount_point()
    host.mount('odd', at)
    tree = walk(at)
    for name in os.listdir(at):
        shutil.rmtree(at / name) if (at / name).is_dir() else os.unlink(at / name)
    host.unmount(at)
    shown = {k for k in ('file', 'file/below') if k.encode() in tree}
    seen = {prefix + key for key in (*MOUNTABLE, 'plain/f', *shown)}
    check_kept(site, {key: body for key, body in bodies.items() if key not in seen})
    assert [key for key in site.bucket().keys(prefix) if key in seen] == []


def test_an_unmountable_key_is_not_overwritten(site: Site) -> None:
    """Where a key stands in the way of a name that a program wants, the key's content survives, whatever the program is told."""
    site.host().create_context('odd')
    prefix = f'contexts/{site.context_id("odd")}/'
    bucket = site.bucket()
    bodies = {prefix + 'dir/': b'content of the marker', prefix + 'x': b'file', prefix + 'x/y': b'below'}
    for key, body in bodies.items():
        bucket.put(key, body)
    host, at = site.host(), site.mount_point()
    host.mount('odd', at)
    (at / 'dir').mkdir(exist_ok=True)
    (at / 'dir/f').write_text('x')
    os.chmod(at / 'dir', 0o700)
    hidden = prefix + ('x' if (at / 'x').is_dir() else 'x/y')
    if (at / 'x').is_dir():
        shutil.rmtree(at / 'x')
    else:
        os.unlink(at / 'x')
    host.unmount(at, check=False)
    kept = {bucket.body(key) for key in bucket.keys(prefix)}
    assert bodies[prefix + 'dir/'] in kept
    assert bodies[hidden] in kept


def test_a_path_too_long_for_a_key_is_refused_or_reported(site: Site) -> None:
    """A path whose key would be longer than stores allow is ENAMETOOLONG, or arrives, or makes `wait` fail and stays on this host."""
    host, at = site.host(), site.mount_point()
    host.mount('long', at, create=True)
    made = {}
    for name in (b'\xff' * 255, b'L' * 250):
        directory = os.fsencode(at)
        try:
            for level in range(6):
                directory = os.path.join(directory, name)
                os.mkdir(directory)
                with open(os.path.join(directory, b'f'), 'wb') as f:
                    f.write(b'%d' % level)
                made[os.path.relpath(os.path.join(directory, b'f'), os.fsencode(at))] = b'%d' % level
        except OSError as e:
            assert e.errno == errno.ENAMETOOLONG, e
    host.run('fusermount3', '-u', at)
    waited = host.cli('wait', 'long', '--timeout', '60', check=False)
    other, there = site.host(), site.mount_point()
    other.mount('long', there)
    arrived = walk(there)
    other.unmount(there)
    assert arrived.items() <= made.items()
    if arrived != made:
        assert waited.returncode == 1 and 'key' in waited.stderr, waited
        host.mount('long', at)
        assert walk(at) == made
        host.unmount(at, check=False)
