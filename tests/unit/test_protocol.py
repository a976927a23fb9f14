"""The messages between the daemon and its workers survive the pipe."""
from __future__ import annotations

import pytest

from ctxfs import errors
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage.archive_log_format import ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.members import Place
from ctxfs.storage.object_store import Condition
from ctxfs.sync import archive_protocol, frames, protocol

ATTRS = Attrs(mode=0o120777, uid=1, gid=2, mtime_ns=3, atime_ns=-4, ctime_ns=5, target=b'\xff/x', xattrs={'user.a': b'\0\xff'})
PLACE = Place('z', 1, 2, 8, 4)
OPERATIONS = [
    protocol.PutFile(key='k', path='/p', size=1, attrs=ATTRS, revision=7, condition=Condition(etag='"e"'), abort_slot=3),
    protocol.PutBytes(key='k/', body=b'', condition=Condition(absent=True)),
    protocol.Copy(source='a', key='b', size=3, lifecycle='Lifecycle_1Day'),
    protocol.DeleteMany(items=[('a', None), ('b', '"e"')]),
    protocol.Head(keys=['a', 'ü\n']),
    protocol.ListPages(prefix='p/', delimiter='/'),
    protocol.Fetch(key='k', etag='e', size=9),
    protocol.PutMany(files=[protocol.PutFile(key='k', path='/p', size=1, attrs=ATTRS, revision=7, abort_slot=3)], parallel=2),
    protocol.Warm(items=[protocol.WarmItem(key='k', etag='e', size=9, start=1, count=2)], budget=3, counts_cached=True),
    protocol.Hydrate(key='k', etag='e', size=9, path='/p'),
    protocol.Adopt(items=[protocol.AdoptItem(path='/p', key='k', etag='e', size=1)]),
    protocol.ReadIndex(prefix='p/', seen=['n']),
    protocol.WriteSegment(prefix='p/', records=[IndexRecord(path='a', changed_ns=1, attrs=ATTRS), IndexRecord(path='b', changed_ns=2)]),
    protocol.CompactIndex(prefix='p/'), protocol.TidyCache(older_than=1.5), protocol.Probe(), protocol.Check(),
    protocol.EnsureExpiry(lifecycle='Lifecycle_1Day', days=1), protocol.Heartbeat(key='k', body=b'{}'),
    archive_protocol.Pack(items=[archive_protocol.PackItem(key='a', attrs=ATTRS, size=3, source_key='k', source_place=PLACE)], part='/p'),
    archive_protocol.SendArchive(key='k', part=archive_protocol.PartRef(path='/p', leave_out=[1]), deleted=['ü']),
    archive_protocol.CommitArchive(key='k', header=LogHeader(kind='commit', number=3, archives=[ArchiveInfo('z', 5)]), parts=[], until=1.5,
                                   more=[MemberRecord(IndexRecord(path='a', changed_ns=1, attrs=ATTRS), PLACE, '"e"')]),
    archive_protocol.ReadLog(prefix='p/', since=7), archive_protocol.WriteBase(prefix='p/', grace_seconds=1.0),
    archive_protocol.Weigh(prefix='p/', rivals=[archive_protocol.Rival(key='k', etag='e', size=1, archive='z', shadows='s', listed=3)])]


def test_every_operation_crosses_unchanged_and_has_a_result_type() -> None:
    """Each request decodes to what was encoded, and the table of results knows it."""
    assert {type(operation) for operation in OPERATIONS} == set(protocol.RESULTS)
    for operation in OPERATIONS:
        request = protocol.Request(id=1, operation=operation, credit=4)  # type: ignore[arg-type]
        assert protocol.decode_to_worker(protocol.frame(request)[4:]) == request


def test_frames_are_cut_wherever_the_stream_is_torn() -> None:
    """Feeding byte by byte gives the same messages as feeding at once."""
    messages = [protocol.Credit(id=number) for number in range(300)]
    stream = b''.join(map(protocol.frame, messages))
    for step in (1, 3, 7, len(stream)):
        reader = frames.FrameReader()
        bodies = [body for at in range(0, len(stream), step) for body in reader.feed(stream[at:at + step])]
        assert [protocol.decode_to_worker(body) for body in bodies] == messages


def test_an_impossible_length_is_refused_before_it_is_buffered() -> None:
    """Four bytes that announce more than MAX_FRAME end the stream."""
    with pytest.raises(errors.Corrupted):
        frames.FrameReader().feed((frames.MAX_FRAME + 1).to_bytes(4, 'big'))


@pytest.mark.parametrize('kind', [errors.NotFound, errors.RemoteChanged, errors.RemoteUnavailable, errors.Denied, errors.NoSpace])
def test_an_error_crosses_as_its_own_class(kind: type[errors.CtxfsError]) -> None:
    """The daemon raises the class and the message that the worker had."""
    revived = protocol.revive(*protocol.describe(kind('why')))
    assert type(revived) is kind and str(revived) == 'why'


def test_a_foreign_error_crosses_as_a_permanent_one_that_names_it() -> None:
    """An unexpected exception is a CtxfsError whose message tells the class; a made-up name cannot become another class."""
    assert str(protocol.revive(*protocol.describe(KeyError('x')))) == "KeyError: 'x'"
    assert type(protocol.revive('annotations', 'x')) is errors.CtxfsError
