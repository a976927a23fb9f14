"""A bucket that somebody filled to do harm: the context mounts, shows what can be shown, and nothing of it reaches beyond the mount.

Owns the harm, on a real mount. What each reader makes of it is in tests/fuzz.
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest
import zstandard

from tests.fuzz.test_index import HEADER, rle_bomb
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a plain directory has no bucket')

#: each on an object of its own; all of them were once an error for the whole directory, or a value that no file can have
METADATA = {
    'year-9999': {'mtime': '253402300799', 'mode': '33188'}, 'rdev': {'rdev': '18446744073709551615', 'mode': '8612'},
    'surrogate': {'xattr': quote('{"\\ud800": "QUFB"}')}, 'nul-name': {'xattr': quote('{"user.a\\u0000b": "QUFB"}')},
    'deep': {'xattr': quote('[' * 200)}, 'target': {'symlink-target': 'a' * 1900, 'mode': '41471'}, 'away': {'symlink-target': '/etc/passwd'},
    'digits': {'uid': '9' * 400, 'mtime': '9' * 400}, 'stamp': {'ctxfs': 'v=1;rev=9999999999999999999;link=%00;sha256=..'}}
KEYS = ['../up', '/absolute', 'a//b', 'd/../../x', './y', '.ctxfs/mine', 'n' * 300, 'a/' * 450 + 'deep', 'plain/file']


def index_object(number: int, *records: object, body: bytes | None = None) -> tuple[str, bytes]:
    lines = b'\n'.join([json.dumps(HEADER).encode(), *(json.dumps(record).encode() for record in records), b''])
    return f'.ctxfs/index/{number:020}-evil-{number:x}.seg.zst', zstandard.compress(lines) if body is None else body


INDEX = [
    index_object(1, body=rle_bomb(8_000)), index_object(2, {'p': 'plain/file', 'n': 10**30, 'm': 33188}),
    index_object(3, {'p': '../../up', 'n': 1, 'm': 33188, 'e': '"x"'}), index_object(4, {'p': '/etc/passwd', 'n': 1, 'm': 33279}),
    index_object(5, {'p': 'plain/file', 'n': 1, 'm': 0o170000 | 0o7777}), index_object(6, body=b'not zstd'),
    index_object(7, {'p': '.ctxfs/', 'n': 1, 'm': 16895}), index_object(8, *[{'p': 'plain/file', 'n': 1}] * 2)]


def files_of(keys: list[str]) -> list[str]:
    return [key for key in keys if '.ctxfs/' not in key]


def test_a_context_full_of_harm_is_mounted_and_harms_nothing(site: MountingSite, tmp_path: Path) -> None:
    """Names, metadata and an index that lead outside, overflow, or unpack to gigabytes; and a context name that is mount options."""
    host, at = site.host(), site.mount_point()
    name = 'evil,allow_other,dev\\,suid'
    host.cli('context', 'create', name)
    prefix, bucket = f'contexts/{site.context_id(name)}/', site.bucket()
    for key, metadata in METADATA.items():
        bucket.put(prefix + key, b'x', metadata)
    for key in KEYS:
        bucket.put(prefix + key, b'content')
    for key, body in INDEX:
        bucket.put(prefix + key, body)
    before = sorted(bucket.keys(''))
    host.mount(name, at)
    fields = next(words for line in Path('/proc/self/mountinfo').read_text().splitlines() if (words := line.split())[4] == str(at))
    options = {*fields[5].split(','), *fields[-1].split(',')}
    assert {'nodev', 'nosuid'} <= options and not {'allow_other', 'dev', 'suid'} & options

    seen = set()
    for directory, directories, files in os.walk(at):
        for entry in (*directories, *files):
            path = Path(directory, entry)
            status = path.lstat()
            assert status.st_ino and path.is_relative_to(at)
            seen.add(str(path.relative_to(at)))
    assert {'plain/file', *METADATA} <= seen and not any('..' in Path(entry).parts or entry.startswith('.ctxfs') for entry in seen)
    assert (at / 'plain/file').read_bytes() == b'content' and (at / ('a/' * 450 + 'deep')).read_bytes() == b'content'
    assert os.readlink(at / 'away') == '/etc/passwd'        # a link may lead anywhere; ctxfs itself does not follow it
    (at / 'mine').write_text('new')
    assert {entry['key'] for entry in host.json('status', at)['mounts'][0]['unmountable']} >= {'../up', '/absolute', 'a//b', 'd/../../x', './y'}
    host.unmount(at)
    assert sorted(files_of(bucket.keys(''))) == sorted([*files_of(before), prefix + 'mine'])
    assert not (tmp_path.parent / 'up').exists() and not Path('/absolute').exists()
