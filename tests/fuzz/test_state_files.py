"""Files of the state, runtime and store directories with anything in them: read as what they are, or as none, or refused in one line."""
from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.config import MountOptions, load_host_id
from ctxfs.config_file import load_config
from ctxfs.edge import runtime_dir
from ctxfs.edge.mount_explain import Explainer
from ctxfs.errors import CtxfsError
from ctxfs.storage.file_store import FileStore
from ctxfs.storage.stores import open_store
from tests.fuzz.tools import DEEP, bounded, fuzz, integers, mutated, texts, values
from tests.unit.rig import Disk, virtual_time
from tests.unit.test_runtime_dir import options

RECORD = {'contextId': 'c', 'contextName': 'n', 'mountpoint': '/m', 'store': 'file:///s', 'stateDir': '/', 'logFile': '/l', 'pid': 1, 'pidStart': 1,
          'bootId': 'b', 'startedAt': 1.0, 'version': '0'}
RESULT = {'ok': True, 'contextId': 'c', 'contextName': 'n', 'mountpoint': '/m', 'stateDir': '/', 'pending': {'files': 0, 'bytes': 0}, 'message': '',
          'finishedAt': 1.0}


def almost(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    return st.one_of(st.fixed_dictionaries({}, optional={name: st.one_of(values, texts, integers) for name in good}).map(
        lambda changes: json.dumps({**good, **changes}).encode()), mutated(st.just(json.dumps(good).encode())), st.binary(max_size=30))


# --- runtime records -------------------------------------------------------------------------------------------------------------

@given(almost(RECORD), almost(RESULT))
@example(json.dumps({**RECORD, 'pid': 1 << 70, 'bootId': runtime_dir.boot_id()}).encode(), b'')
@example(json.dumps({**RECORD, 'pid': -1, 'bootId': runtime_dir.boot_id()}).encode(), b'')
@example(json.dumps({**RECORD, 'stateDir': 'a\0b', 'mountpoint': 'a\0b'}).encode(), b'')
@example(DEEP[0], DEEP[1])
@example(b'"\xed\xa0\x80"', b'\xff')
@fuzz
def test_any_records_of_mounts_are_mounts_or_none(record: bytes, result: bytes) -> None:
    """What every command reads before it does anything: also pids and paths that no system has."""
    with tempfile.TemporaryDirectory(dir=os.environ['TMPDIR']) as name:
        root = Path(name)
        (root / 'x').mkdir()
        (root / 'x/mount.json').write_bytes(record)
        (root / 'x/result.json').write_bytes(result)
        runtime_dir.claim(options(root, 'other'))
        for mount in [*runtime_dir.find_mounts(root), *runtime_dir.current_mounts(root, root)]:
            assert mount.is_alive() in (True, False) and mount.is_attached() in (True, False)
            assert mount.result() is None or isinstance(mount.result(), runtime_dir.MountResult)
            runtime_dir.reread(mount)
            assert mount.record.pid == 1 or runtime_dir.wait_for_end(mount, 0) in (True, False)


def test_records_that_are_no_files_are_none(tmp_path: Path) -> None:
    """A fifo would be waited for, and a file of gigabytes would be read."""
    for name, make in [('fifo', os.mkfifo), ('dir', os.mkdir), ('dangling', lambda path: os.symlink('nowhere', path)),
                       ('zero', lambda path: os.symlink('/dev/zero', path))]:
        (tmp_path / name).mkdir()
        make(tmp_path / name / 'mount.json')
    large = tmp_path / 'large/mount.json'
    large.parent.mkdir()
    with open(large, 'wb') as file:
        file.truncate(1 << 36)
    assert bounded(lambda: runtime_dir.find_mounts(tmp_path), megabytes=64) == []


# --- the state directory ---------------------------------------------------------------------------------------------------------

@given(st.one_of(st.binary(max_size=40), st.just(b'0123456789abcdef\n')))
@fuzz
def test_a_host_id_is_one_or_made_anew(content: bytes) -> None:
    """It becomes part of names and metadata in the bucket."""
    with tempfile.TemporaryDirectory(dir=os.environ['TMPDIR']) as name:
        (Path(name) / 'host-id').write_bytes(content)
        try:
            found = load_host_id(Path(name))
        except CtxfsError:
            return
        assert len(found) == 16 and found.isalnum() and found.isascii()


@given(almost({'context_id': 'c', 'mountpoint': '/m'}))
@example(DEEP[0])
@example(b'"\xed\xa0\x80"')
@fuzz
def test_mount_options_are_options_or_refused(data: bytes) -> None:
    """What the command line hands to the daemon."""
    try:
        MountOptions.from_json(data)
    except CtxfsError:
        return


TOML = b'store = "file:///x"\ncache_size = "1G"\npoll_every = 5\n[policy.uploadPolicy]\nperiod = "30s"\n'


@given(st.one_of(st.binary(max_size=60), mutated(st.just(TOML)), texts.map(lambda text: text.encode('utf-8', 'replace'))))
@example(b'a = ' + b'[' * 100_000)
@example(b'cache_size = ' + b'9' * 10_000)
@example(b'poll_every = 0x' + b'f' * 10_000)
@example(b'a' + b'.a' * 20_000 + b' = 1')
@example(b'a = 9999-99-99T99:99:99Z')
@fuzz
def test_a_config_file_is_read_or_refused(data: bytes) -> None:
    """In one line that names it."""
    with tempfile.TemporaryDirectory(dir=os.environ['TMPDIR']) as name:
        file = Path(name) / 'config.toml'
        file.write_bytes(data)
        try:
            load_config(file)
        except CtxfsError as error:
            assert str(file) in str(error)


# --- a directory that is used as a bucket ----------------------------------------------------------------------------------------

KEY = 'a'
SIDECAR = {'key': KEY, 'versions': {'"x"': {'metadata': {'mode': '33188'}, 'content_type': 'a/b', 'mtime_ns': 1, 'tags': {'a': 'b'}}}}


@given(almost(SIDECAR))
@example(b'{"key":' + DEEP[0])
@example(b'"\xed\xa0\x80"')
@example(json.dumps({**SIDECAR, 'versions': {'"x"': {'mtime_ns': 1 << 70}}}).encode())
@fuzz
def test_any_sidecar_is_one_or_none(content: bytes) -> None:
    """Whoever may write into the directory may write them: the object itself stays what it is."""
    with tempfile.TemporaryDirectory(dir=os.environ['TMPDIR']) as name:
        store = FileStore(name, durable=False)
        etag = store.put(KEY, b'body', metadata={'mode': '33188'}).etag
        sidecar, = Path(name).glob('.bucket/meta/*/*')
        sidecar.write_bytes(content.replace(b'\\"x\\"', json.dumps(etag)[1:-1].encode()))
        assert store.get(KEY) == b'body'
        info = store.head(KEY)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=type(info)) == info and abs(info.mtime_ns) < 1 << 63
        store.close()


def test_special_files_in_the_directory_are_no_objects(tmp_path: Path) -> None:
    """Fifos, links out of it and devices: neither waited for nor followed."""
    (tmp_path / 'outside').write_text('secret')
    root = tmp_path / 'store'
    root.mkdir()
    os.mkfifo(root / 'fifo')
    os.symlink('../outside', root / 'link')
    os.symlink('..', root / 'up')
    store = open_store(f'file://{root}')
    store.put('good', b'1')
    os.makedirs(root / '.bucket/meta/zz', exist_ok=True)
    assert [info.key for info in store.list('').objects] == ['good']
    for key in ('fifo', 'link', 'up/outside', '../outside', 'up/../outside'):
        with pytest.raises(CtxfsError):
            bounded(lambda key=key: store.get(key))     # type: ignore[misc]
    for key in ('link', 'up/new', '../new', 'fifo'):
        store.put(key, b'mine')
        assert store.get(key) == b'mine'
    assert (tmp_path / 'outside').read_text() == 'secret' and not (tmp_path / 'new').exists()
    assert stat.S_ISFIFO((root / 'fifo').lstat().st_mode)
    store.close()


@given(st.lists(st.tuples(texts.filter(lambda text: 0 < len(text.encode('utf-8', 'replace')) <= 1023), st.binary(max_size=9)), max_size=5))
@fuzz
def test_any_key_stays_inside_the_directory(objects: list[tuple[str, bytes]]) -> None:
    """And comes back with its bytes, in a listing too."""
    with tempfile.TemporaryDirectory(dir=os.environ['TMPDIR']) as name:
        root = Path(name) / 'a/b/store'
        root.mkdir(parents=True)
        store, put = FileStore(str(root), durable=False), {}
        for key, body in objects:
            if key.endswith('/'):
                body = b''
            try:
                store.put(key, body)
            except CtxfsError:
                continue
            put[key] = body
        assert {key: store.get(key) for key in put} == put
        assert [info.key for info in store.list('').objects] == sorted(put, key=str.encode)
        store.close()
        assert [path.name for path in Path(name).iterdir()] == ['a'] and [path.name for path in (Path(name) / 'a/b').iterdir()] == ['store']


# --- a path that a client of the control socket names ----------------------------------------------------------------------------

def test_any_path_is_explained_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that no file has, halves of surrogate pairs, paths out of the mount."""
    async def scenario() -> None:
        disk = Disk(tmp_path)
        async with disk.running():
            await disk.save(b'a', b'1')
            parts: Any = Explained(disk)

            async def explain(path: str) -> None:
                try:
                    found = await Explainer(parts).explain(path)
                except CtxfsError as error:
                    assert str(error)
                else:
                    assert msgspec.json.encode(found)
            for path in ('a', '/a', '..', 'a/..', '\0', '\ud800', '\udc80', 'a' * 300, 'a/' * 2000, '/mnt/a', '/mnt', '.ctxfs/index', '‛FF'):
                await explain(path)
            done = []
            given(texts)(fuzz(lambda path: done.append(path)))()
            for path in done:
                await explain(path)
    with virtual_time(monkeypatch) as clock:
        trio.run(scenario, clock=clock)


class Explained:
    """What an Explainer needs of a mount, of a Disk."""

    def __init__(self, disk: Disk) -> None:
        self.rules, self.db, self.journal, self.engine, self.remote = disk.rules, disk.db, disk.journal, disk.engine, disk.remote
        self.options = type('Options', (), {'mountpoint': '/mnt'})
