"""What every store does with files: whole or not at all, whatever happens to the file while it is read."""
from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from ctxfs.errors import NotFound
from ctxfs.storage.object_store import Aborted, ObjectStore
from tests.contract.conftest import all_keys

SIZES = [0, 1, 100_000, (16 << 20), (16 << 20) + 1, 40_000_001]


def make(path: Path, size: int) -> bytes:
    """Content in which every 16 bytes differ, so that parts in the wrong order show."""
    body = b''.join(number.to_bytes(16, 'big') for number in range(size // 16 + 1))[:size]
    path.write_bytes(body)
    return body


@pytest.mark.parametrize('size', SIZES)
def test_a_file_of_any_size_arrives(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """In one request or in parts: content, metadata, type and the sum of what progress reported."""
    body = make(tmp_path / 'f', size)
    told: list[int] = []
    with open(tmp_path / 'f', 'rb') as file:
        file.seek(min(size, 7))
        put = store.put_file('d/k', file, size, metadata={'m': '1'}, content_type='text/plain', progress=told.append)
    info = store.head('d/k')
    assert (put.size, info.size, info.etag, info.metadata, info.content_type) == (size, size, put.etag, {'m': '1'}, 'text/plain')
    assert store.get('d/k') == body
    assert sum(told) == size


def test_a_file_without_descriptor_is_as_good(store: ObjectStore) -> None:
    """Anything that seeks and reads."""
    body = os.urandom(17 << 20)
    store.put_file('k', io.BytesIO(body), len(body))
    assert store.get('k') == body


@pytest.mark.parametrize('size', [10, 20 << 20])
def test_a_put_that_may_not_commit_leaves_the_old_object(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """may_commit() is asked once, and False undoes everything."""
    make(tmp_path / 'f', size)
    old = store.put('k', b'old')
    asked = []

    def may_commit() -> bool:
        asked.append(1)
        return False
    with open(tmp_path / 'f', 'rb') as file, pytest.raises(Aborted):
        store.put_file('k', file, size, may_commit=may_commit)
    assert asked == [1]
    assert (store.head('k').etag, store.get('k'), all_keys(store)) == (old.etag, b'old', ['k'])


@pytest.mark.parametrize('size', [10, 20 << 20])
def test_a_file_that_became_shorter_is_not_put(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """Fewer bytes than announced are no version of the file."""
    make(tmp_path / 'f', size - 1)
    with open(tmp_path / 'f', 'rb') as file, pytest.raises(Aborted):
        store.put_file('k', file, size)
    with pytest.raises(NotFound):
        store.head('k')


@pytest.mark.parametrize('size', [10, 20 << 20])
def test_may_commit_is_asked_after_the_last_byte_was_read(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """What is written to the file from then on is not in the object."""
    body = make(tmp_path / 'f', size)

    def may_commit() -> bool:
        (tmp_path / 'f').write_bytes(b'-' * size)
        return True
    with open(tmp_path / 'f', 'rb') as file:
        store.put_file('k', file, size, may_commit=may_commit)
    assert store.get('k') == body


def test_an_object_is_whole_at_every_instant(store: ObjectStore) -> None:
    """A reader beside a writer sees one version or the other, with the metadata of the same one."""
    bodies = [bytes([letter]) * 300_000 for letter in b'ab']
    store.put('k', bodies[0], metadata={'v': 'a'})
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            body, info = store.get('k'), store.head('k')
            seen.append((len(body), len(set(body)), (info.metadata or {}).get('v')))
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(30):
            store.put('k', bodies[number % 2], metadata={'v': 'ab'[number % 2]})
    finally:
        done.set()
        reader.join()
    assert seen
    assert {length for length, _, _ in seen} == {300_000}
    assert {letters for _, letters, _ in seen} == {1}
    assert {v for _, _, v in seen} <= {'a', 'b'}
