"""The file:// store as a directory that people, crashes and other processes change as well."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.errors import Denied, NoSpace, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage import file_layout, file_store, file_walk
from ctxfs.storage.file_store import FileStore
from ctxfs.storage.object_store import Condition


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / 'store'


@pytest.fixture
def store(top: Path) -> Iterator[FileStore]:
    with contextlib.closing(FileStore(str(top), create=True, durable=False)) as made:
        yield made


def keys(store: FileStore, prefix: str = '') -> list[str]:
    return [info.key for info in store.list(prefix).objects]


def private_files(top: Path, *names: str) -> list[Path]:
    return [path for path in top.joinpath('.bucket', *names).rglob('*') if path.is_file()]


def test_an_object_is_a_plain_file(store: FileStore, top: Path) -> None:
    """Where its key says, readable by anybody the umask allows, and beside it nothing."""
    store.put('a/b.txt', b'hello', metadata={'k': 'v'})
    assert (top / 'a/b.txt').read_bytes() == b'hello'
    assert sorted(os.listdir(top)) == ['.bucket', 'a']
    assert os.listdir(top / 'a') == ['b.txt']


def test_a_file_that_somebody_put_there_is_an_object(store: FileStore, top: Path) -> None:
    """Without metadata; one that was edited is a new version, whose old metadata does not hold."""
    (top / 'd').mkdir()
    (top / 'd/new').write_bytes(b'by hand')
    info = store.head('d/new')
    assert (info.size, info.metadata, info.content_type) == (7, {}, None)
    old = store.put('edited', b'1234', metadata={'k': 'v'})
    (top / 'edited').write_bytes(b'5678')
    os.utime(top / 'edited', ns=(0, store.head('edited').mtime_ns + 10**9))    # the clock of file times ticks every few ms only
    info = store.head('edited')
    assert info.etag != old.etag
    assert info.metadata == {}
    with pytest.raises(RemoteChanged):
        store.put('edited', b'', condition=Condition(etag=old.etag))
    assert keys(store) == ['d/new', 'edited']


def test_an_object_that_somebody_removed_is_gone(store: FileStore, top: Path) -> None:
    """And its sidecar does not bring it or its metadata back."""
    store.put('a/b', b'1', metadata={'k': 'v'})
    (top / 'a/b').unlink()
    with pytest.raises(NotFound):
        store.head('a/b')
    store.put('a/b', b'2')
    assert store.head('a/b').metadata == {}


def test_an_empty_directory_made_by_hand_is_a_marker(store: FileStore, top: Path) -> None:
    """As one that was put; with an object in it, it is no object of its own, and goes with the last one."""
    (top / 'x/y').mkdir(parents=True)
    assert keys(store) == ['x/y/']
    assert store.head('x/y/').etag == store.list('').objects[0].etag
    store.put('x/y/z', b'')
    assert keys(store) == ['x/y/z']
    store.delete('x/y/z')
    assert keys(store) == []
    assert not (top / 'x').exists()


def test_directories_go_with_their_last_object(store: FileStore, top: Path) -> None:
    """Up to the first that holds something or was put as a marker."""
    store.put('m/', b'')
    store.put('m/a/b/c', b'')
    store.put('m/a/other', b'')
    store.delete('m/a/b/c')
    assert not (top / 'm/a/b').exists()
    store.delete('m/a/other')
    assert keys(store) == ['m/']
    store.delete('m/')
    assert os.listdir(top) == ['.bucket']


def test_symlinks_are_neither_followed_nor_replaced(store: FileStore, top: Path, tmp_path: Path) -> None:
    """A key below or at a symlink goes to the odd area; what the link points to is untouched."""
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'secret').write_bytes(b'secret')
    (top / 'link').symlink_to(outside)
    (top / 'file').symlink_to(outside / 'secret')
    assert keys(store) == []
    for key in ('link/secret', 'file', 'link/'):
        with pytest.raises(NotFound):
            store.get(key)
        store.put(key, b'mine')
        assert store.get(key) == b'mine'
    assert keys(store) == ['file', 'link/', 'link/secret']
    assert (outside / 'secret').read_bytes() == b'secret'
    assert (top / 'link').is_symlink()
    assert (top / 'file').is_symlink()
    assert store.delete_many([(key, None) for key in keys(store)]) == []
    assert (outside / 'secret').exists()


def test_what_is_no_file_is_no_object(store: FileStore, top: Path) -> None:
    """A fifo does not even block a reader, and stays when its key is put and deleted."""
    os.mkfifo(top / 'fifo')
    assert keys(store) == []
    with pytest.raises(NotFound):
        store.get('fifo')
    store.put('fifo', b'x')
    assert store.get('fifo') == b'x'
    store.delete('fifo')
    assert (top / 'fifo').is_fifo()


def test_a_file_that_comes_where_an_odd_key_was_wins(store: FileStore, top: Path) -> None:
    """The tree is looked at first; after its file is deleted the odd copy does not come back."""
    (top / 'a').write_bytes(b'file')
    store.put('a/b', b'odd')
    (top / 'a').unlink()
    assert store.get('a/b') == b'odd'
    (top / 'a').mkdir()
    (top / 'a/b').write_bytes(b'tree')
    assert (store.get('a/b'), keys(store)) == (b'tree', ['a/b'])
    store.delete('a/b')
    assert keys(store) == []


def test_names_that_no_key_can_be_are_reported(store: FileStore, top: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not UTF-8, or a path longer than a key: not listed, and not silently."""
    (top / os.fsdecode(b'bad\xff')).write_bytes(b'')
    deep = top.joinpath(*['n' * 250] * 4)
    deep.mkdir(parents=True)
    (deep / ('x' * 250)).write_bytes(b'')
    with caplog.at_level(logging.WARNING):
        assert keys(store) == []
    assert 'not UTF-8' in caplog.text
    assert 'longer than' in caplog.text
    caplog.clear()


def test_a_sidecar_that_is_damaged_costs_the_metadata_only(store: FileStore, top: Path) -> None:
    """Zeros after a power cut, half of it, another key's."""
    store.put('a', b'body', metadata={'k': 'v'})
    [sidecar] = private_files(top, 'meta')
    good = sidecar.read_bytes()
    for damaged in (b'', b'\0' * 50, good[:-10], good.replace(b'"key":"a"', b'"key":"b"'), b'[]', b'\xff'):
        sidecar.write_bytes(damaged)
        assert store.get('a') == b'body'
        assert store.head('a').metadata == {}
    sidecar.write_bytes(good)
    assert store.head('a').metadata == {'k': 'v'}


def test_a_sidecar_goes_with_its_object(store: FileStore, top: Path) -> None:
    """Also for markers, odd keys, and objects that are put again without metadata."""
    for key in ('a', 'd/', 'odd//key', 'again'):
        store.put(key, b'', metadata={'k': 'v'})
    store.put('again', b'')
    for key in keys(store):
        store.delete(key)
    assert private_files(top, 'meta') == private_files(top, 'odd') == private_files(top, 'tmp') == []


@pytest.mark.parametrize('step', ['write_sidecar', '_place_in_tree', 'place_temp', 'sync_sidecar'])
def test_a_put_that_dies_at_any_step_leaves_one_whole_version(store: FileStore, top: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old content with old metadata, or new with new, to another process that opens the store after it."""
    store.put('d/k', b'old', metadata={'v': 'old'})

    def die(*args: object, **options: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(FileStore if step == '_place_in_tree' else file_layout.Layout, step, die)
    with pytest.raises(KeyboardInterrupt):
        store.put('d/k', b'new', metadata={'v': 'new'})
    monkeypatch.undo()
    with contextlib.closing(FileStore(str(top))) as other:
        state = (other.get('d/k'), other.head('d/k').metadata)
        assert state == ((b'new', {'v': 'new'}) if step == 'sync_sidecar' else (b'old', {'v': 'old'}))
        other.put('d/k', b'next', metadata={'v': 'next'})
        assert other.head('d/k').metadata == {'v': 'next'}


def test_files_of_dead_writers_are_removed(store: FileStore, top: Path) -> None:
    """When the store is opened or checked: those that nobody holds and that are old; never one that is being written."""
    store.put('a', b'')
    tmp = top / '.bucket/tmp'
    for name in ('stale', 'held', 'young'):
        (tmp / name).write_bytes(b'')
    past = time.time() - file_layout.STALE_SECONDS - 1
    os.utime(tmp / 'stale', (past, past))
    os.utime(tmp / 'held', (past, past))
    with open(tmp / 'held') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.check()
        assert sorted(os.listdir(tmp)) == ['held', 'young']
    assert keys(store) == ['a']


def test_a_lock_that_is_held_too_long_is_a_transient_error(store: FileStore, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder is stopped, not dead: a dead one's lock is free."""
    monkeypatch.setattr(file_layout, 'LOCK_SECONDS', 0.05)
    store.put('a', b'')
    with contextlib.ExitStack() as stack:
        for path in private_files(top, 'lock'):
            file = stack.enter_context(open(path))
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RemoteUnavailable, match='held by another process'):
            store.put('a', b'')
    store.put('a', b'')


@pytest.mark.parametrize(('number', 'kind'), [
    (errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, Denied), (errno.EIO, RemoteUnavailable),
])
def test_errors_of_the_disk_are_errors_of_the_store(store: FileStore, top: Path, number: int, kind: type[Exception],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave the old object, and no temp file."""
    store.put('a', b'old')

    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr('ctxfs.storage.file_store.write_all', fail)
    with pytest.raises(kind):
        store.put('a', b'new')
    assert store.get('a') == b'old'
    assert private_files(top, 'tmp') == []


def test_a_durable_put_is_synced_before_it_is_seen(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content before the rename, each new name's directory after it."""
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        events.append('sync ' + os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), top))
        real_fsync(fd)

    def rename(source: bytes, target: bytes, **options: int) -> None:
        events.append(f'rename to {os.fsdecode(target)}')
        real_rename(source, target, **options)
    with contextlib.closing(FileStore(str(top), create=True)) as store:
        store.put('warm', b'', metadata={'k': 'v'})
        store.put('new', b'', metadata={'k': 'v'})
        monkeypatch.setattr(os, 'fsync', fsync)
        monkeypatch.setattr(os, 'rename', rename)
        store.put('d/k', b'')
        assert events[0].startswith('sync .bucket/tmp/')
        assert events[1:] == ['sync .', 'rename to k', 'sync d']
        events.clear()
        store.put('new', b'', metadata={'k': 'w'})
        assert [event.rpartition('/')[0] or event for event in events[:2]] == ['sync .bucket/tmp', 'sync .bucket/tmp']
        assert events[-3:-1] == ['rename to new', 'sync .']
        assert events[-1].startswith('sync .bucket/meta/')
        events.clear()
        store.delete('d/k')
        store.delete('new')
        assert events == ['sync .', 'sync .']


def test_a_listing_reads_only_what_its_page_needs(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in the middle opens the directories on its way and of its keys, not those before and after."""
    for number in range(60):
        store.put(f'd{number:02}/a/b/k', b'')
    real, read = file_walk._read_names, []

    def read_names(directory: int, base: bytes, slash: bytes) -> list[bytes]:
        read.append(base)
        return real(directory, base, slash)
    monkeypatch.setattr(file_walk, '_read_names', read_names)
    page = store.list('', start_after='d30/a/b/k', limit=2)
    assert [info.key for info in page.objects] == ['d31/a/b/k', 'd32/a/b/k']
    assert {base[:3] for base in read} <= {b'', b'd30', b'd31', b'd32', b'd33'}
    read.clear()
    store.list('d40/a/')
    assert {base[:3] for base in read} == {b'd40'}


def test_a_huge_directory_is_read_once_for_all_its_pages(store: FileStore, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again as soon as it changed."""
    monkeypatch.setattr(file_walk, '_REMEMBER_FROM', 50)
    monkeypatch.setattr(file_walk, '_SETTLED_NS', 0)
    (top / 'd').mkdir()
    for number in range(100):
        (top / f'd/{number:03}').write_bytes(b'')
    past = time.time() - 1
    os.utime(top / 'd', (past, past))
    real, read = file_walk._read_names, []

    def read_names(directory: int, base: bytes, slash: bytes) -> list[bytes]:
        read.append(base)
        return real(directory, base, slash)
    monkeypatch.setattr(file_walk, '_read_names', read_names)
    first = store.list('d/', limit=60)
    store.list('d/', token=first.next_token)
    assert read == [b'd/']
    (top / 'd/new').write_bytes(b'')
    assert 'd/new' in keys(store, 'd/')


def test_listings_beside_writers_show_no_directory_as_an_object(store: FileStore) -> None:
    """A directory that is empty for a moment, because its first object is coming or its last one went, is no marker."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            store.put('x/y/z', b'')
            store.delete('x/y/z')
    writer = threading.Thread(target=work)
    writer.start()
    try:
        for _ in range(300):
            assert keys(store) in ([], ['x/y/z'])
    finally:
        done.set()
        writer.join()


def test_a_reader_meets_no_mixture_of_an_edit_in_place(store: FileStore, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again when the file changed meanwhile, and given up when it does not stop."""
    (top / 'f').write_bytes(b'old')
    real, calls = file_store.read_range, []

    def read_range(fd: int, start: int, stop: int) -> bytes:
        data = real(fd, start, stop)
        calls.append(1)
        if len(calls) <= edits:
            (top / 'f').write_bytes(b'new' * (1 + len(calls)))
        return data
    monkeypatch.setattr(file_store, 'read_range', read_range)
    edits = 1
    assert store.get('f') == b'newnew'
    calls.clear()
    edits = 99
    with pytest.raises(RemoteUnavailable):
        store.get('f')


def test_many_keys_leave_no_descriptor_open(store: FileStore) -> None:
    """Pages are left in the middle of a walk; nothing of it stays open."""
    for number in range(30):
        store.put(f'a/b{number}/c//d', b'')
        store.put(f'a/b{number}/c/d', b'')
    before = len(os.listdir('/proc/self/fd'))
    for limit in (1, 5):
        page = store.list('a/', delimiter='', limit=limit)
        store.list('a/', token=page.next_token, limit=limit)
        store.list('a/', delimiter='/', limit=limit)
        for key in ('a/b1/c/d', 'a/b1/c//d', 'none'):
            with contextlib.suppress(NotFound):
                store.get(key)
    assert len(os.listdir('/proc/self/fd')) == before


def test_a_file_replaced_twice_while_it_is_looked_at_still_has_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its stat and the reading of its sidecar, which knows two versions."""
    store = FileStore(str(tmp_path / 'store'), create=True)
    store.put('k', b'0', metadata={'v': '0'})
    layout, read = store._layout, store._layout.read_sidecar

    def overtaken(raw: bytes):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(layout, 'read_sidecar', read)
        for number in (1, 2):
            store.put('k', b'%d' % number, metadata={'v': str(number)})
        return read(raw)
    monkeypatch.setattr(layout, 'read_sidecar', overtaken)
    assert store.head('k').metadata == {'v': '2'}
    store.close()
