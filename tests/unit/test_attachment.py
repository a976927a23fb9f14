"""When a mount counts as gone."""
from __future__ import annotations

import os

import pytest

from ctxfs.edge import attachment
from ctxfs.edge.attachment import Attachment
from ctxfs.edge.mount_table import MountEntry


def entry(device: int, fstype: str = 'fuse.ctxfs', at: str = '/m') -> MountEntry:
    return MountEntry(mount_id=device, device=os.makedev(0, device), mountpoint=at, fstype=fstype, source='x')


@pytest.mark.parametrize(('found', 'table', 'is_there'), [
    (entry(1), [entry(1)], True), (entry(1), [], False), (entry(1), [entry(2)], False),
    (entry(1), [entry(1, at='/moved')], True), (entry(1), [entry(1), entry(2, 'tmpfs')], True),
    (None, [], True), (entry(2, 'tmpfs'), [], True),
], ids=['there', 'gone', 'another one', 'moved', 'covered', 'never seen', 'something else was seen'])
def test_a_mount_is_gone_only_where_it_was_seen(monkeypatch: pytest.MonkeyPatch, found: MountEntry | None, table: list[MountEntry],
                                                is_there: bool) -> None:
    """What was not recognised must not end a mount that people use."""
    monkeypatch.setattr(attachment, 'mount_at', lambda path: found)
    monkeypatch.setattr(attachment, 'read_mounts', lambda: table)
    assert Attachment('/m').is_there == is_there
