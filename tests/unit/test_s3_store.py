"""The S3 store against servers that do not behave: what it finds out about them, what it does instead, and what it never does."""
from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ctxfs.errors import Denied, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage import s3_multipart
from ctxfs.storage.object_store import PARTS_ABOVE, UNKNOWN, Aborted, Capabilities, Condition
from ctxfs.storage.s3_retry import ATTEMPTS
from ctxfs.storage.s3_store import S3Store
from tests.crash.watch import eventually
from tests.fakes.s3_server import FakeS3, Fault, Quirk, Request

ABSENT = Condition(absent=True)
BIG = PARTS_ABOVE + 1
EVERYTHING = Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=True, conditional_copy=True, batch_delete=True,
                          conditional_batch_delete=True, conditional_copy_source=True, conditional_parts=True, tagging=True, lifecycle=True)
#: without conditions, with all the rest
UNCONDITIONAL = msgspec.structs.replace(UNKNOWN, batch_delete=True, tagging=True, lifecycle=True, is_limited=False)
BY_QUIRK = {
    None: EVERYTHING,
    Quirk.IGNORES_CONDITIONS: UNCONDITIONAL,
    Quirk.REFUSES_CONDITIONS: msgspec.structs.replace(UNCONDITIONAL, conditional_copy_source=True),
    Quirk.FORBID_OVERWRITE: msgspec.structs.replace(UNCONDITIONAL, conditional_copy_source=True, forbid_overwrite=True,
                                                  forbid_overwrite_everywhere=True),
    Quirk.NO_TAGS: msgspec.structs.replace(EVERYTHING, tagging=False),
    Quirk.REFUSES_TAGS: msgspec.structs.replace(EVERYTHING, tagging=False),
    Quirk.NO_LIFECYCLE: msgspec.structs.replace(EVERYTHING, lifecycle=False),
    Quirk.NO_LIFECYCLE_RIGHTS: msgspec.structs.replace(EVERYTHING, lifecycle=False, is_limited=True),
    Quirk.UNQUOTED_ETAGS: msgspec.structs.replace(EVERYTHING, unquoted_etags=True),
    Quirk.NO_BATCH: msgspec.structs.replace(EVERYTHING, batch_delete=False, conditional_batch_delete=False),
}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


@contextlib.contextmanager
def opened(*quirks: Quirk | None, **options: Any) -> Iterator[tuple[FakeS3, S3Store]]:
    with FakeS3(quirks=[quirk for quirk in quirks if quirk]) as fake, contextlib.closing(
            S3Store(fake.bucket, endpoint=fake.endpoint, **options)) as store:
        yield fake, store


@pytest.mark.parametrize('quirk', BY_QUIRK, ids=str)
def test_the_probe_finds_out_what_the_server_can_do(quirk: Quirk | None) -> None:
    """Once, on scratch objects that it removes, below the prefix it was given."""
    with opened(quirk, scratch_prefix='contexts/x/.ctxfs/') as (fake, store):
        assert store.capabilities() == BY_QUIRK[quirk]
        assert fake.objects == {}
        assert {request.key.rpartition('probe-')[0] for request in fake.requests if request.key} == {'contexts/x/.ctxfs/'}
        count = len(fake.requests)
        store.capabilities()
        assert len(fake.requests) == count


def test_questions_that_do_not_depend_on_each_other_wait_for_none() -> None:
    """While the bucket's rules are not answered, all others of the first round are."""
    with opened() as (fake, store):
        hold = fake.hold_next('GET', when=lambda request: 'lifecycle' in request.query)
        found: list[Capabilities] = []
        asking = threading.Thread(target=lambda: found.append(store.capabilities()))
        asking.start()
        try:
            eventually('the batches', lambda: sum('delete' in request.query for request in fake.requests) == 2)
            eventually('the tags', lambda: any(request.headers.get('x-amz-tagging') == 'ctxfs-probe=2' for request in fake.requests))
            assert hold.arrived.is_set() and not found
        finally:
            hold.release.set()
            asking.join(30)
        assert found == [EVERYTHING] and fake.objects == {}


@pytest.mark.parametrize('quirk', BY_QUIRK, ids=str)
def test_what_was_found_out_can_be_remembered(quirk: Quirk | None) -> None:
    """As a dict, and then nothing is probed again."""
    known = msgspec.to_builtins(BY_QUIRK[quirk])
    with opened(quirk, known=known) as (fake, store):
        assert store.capabilities() == BY_QUIRK[quirk]
        store.put('k', b'', condition=ABSENT)
        assert not [request for request in fake.requests if 'probe' in request.key]


@pytest.mark.parametrize('quirk', BY_QUIRK, ids=str)
def test_conditions_hold_on_every_server(quirk: Quirk | None) -> None:
    """Without a race: what is refused elsewhere is refused here, whatever the server does with the headers."""
    with opened(quirk) as (fake, store):
        first = store.put('k', b'1', condition=ABSENT)
        for write in (lambda: store.put('k', b'2', condition=ABSENT), lambda: store.copy('k', 'k', condition=ABSENT, metadata={}),
                      lambda: store.put_file('k', io.BytesIO(bytes(BIG)), BIG, condition=ABSENT),
                      lambda: store.put('k', b'2', condition=Condition(etag='"stale"')), lambda: store.delete('k', if_match='"stale"'),
                      lambda: store.put_file('k', io.BytesIO(bytes(BIG)), BIG, condition=Condition(etag='"stale"')),
                      lambda: store.copy('k', 'j', source_etag='"stale"'), lambda: store.put('j', b'', condition=Condition(etag=first.etag)),
                      lambda: store.get('k', if_match='"stale"')):
            with pytest.raises(RemoteChanged):
                write()
        assert [key for key, _ in store.delete_many([('k', '"stale"'), ('absent', '"stale"')])] == ['k']
        assert list(fake.objects) == ['k']
        assert (store.get('k', if_match=first.etag), fake.uploads) == (b'1', {})
        second = store.put('k', b'3', condition=Condition(etag=first.etag))
        third = store.put_file('k', io.BytesIO(bytes(BIG)), BIG, condition=Condition(etag=second.etag))
        fourth = store.copy('k', 'k', condition=Condition(etag=third.etag), metadata={'a': 'b'})
        assert store.delete_many([('k', fourth.etag)]) == []
        assert fake.objects == {}


def test_oss_creates_by_its_own_header() -> None:
    """Atomic, which a look before the write is not."""
    with opened(Quirk.FORBID_OVERWRITE) as (fake, store):
        store.put('k', b'', condition=ABSENT)
        assert fake.requests[-1].headers['x-oss-forbid-overwrite'] == 'true'
        fake.requests.clear()
        with pytest.raises(RemoteChanged):
            store.put('k', b'', condition=ABSENT)
        assert [request.method for request in fake.requests] == ['PUT']


def test_unquoted_etags_are_found_out_by_a_read_too() -> None:
    """A mount that only reads never probes; the second read knows."""
    with opened(Quirk.UNQUOTED_ETAGS) as (fake, store):
        etag = fake.new_etag(b'x')
        store.put('k', b'content')
        etag = fake.objects['k'].etag
        assert store.get('k', 0, 3, if_match=etag) == b'con'
        fake.requests.clear()
        assert store.get('k', 3, 5, if_match=etag) == b'te'
        assert len(fake.requests) == 1


@pytest.mark.parametrize('quirk', [Quirk.IGNORES_RANGE, Quirk.IGNORES_CONDITIONS])
def test_a_read_is_right_although_the_server_ignores_its_headers(quirk: Quirk) -> None:
    """The range is cut out here, and the etag of the answer compared."""
    with opened(quirk) as (_, store):
        put = store.put('k', b'0123456789')
        assert store.get('k', 2, 4, if_match=put.etag) == b'23'
        assert store.get('k', 12, 14) == b''
        with pytest.raises(RemoteChanged):
            store.get('k', 2, 4, if_match='"stale"')


@pytest.mark.parametrize('quirk', [Quirk.BARE_LISTED_ETAGS, Quirk.NO_URL_ENCODING])
def test_listings_are_read_in_any_spelling(quirk: Quirk) -> None:
    """Etags compare equal to head's, keys are those that were put."""
    with opened(quirk) as (_, store):
        for key in ('a b+c%41', 'é/<&>', 'plain'):
            store.put(key, b'')
        listed = store.list('').objects
        assert [(info.key, info.etag) for info in listed] == [(key, store.head(key).etag) for key in ('a b+c%41', 'plain', 'é/<&>')]


def test_a_copy_that_fails_behind_status_200_fails() -> None:
    """S3 may find out late; the body tells."""
    with opened(Quirk.ERROR_IN_COPY) as (_, store):
        store.put('a', b'')
        with pytest.raises(RemoteUnavailable, match='try again'):
            store.copy('a', 'b')


def test_a_copy_keeps_the_headers_that_it_cannot_see() -> None:
    """New metadata replaces metadata only: type, encoding and cache rules stay."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        store.put('k', b'', content_type='text/css')
        fake.objects['k'].headers['cache-control'] = 'no-store'
        fake.objects['k'].headers['content-encoding'] = 'gzip'
        store.copy('k', 'k', metadata={'a': 'b'})
        assert fake.objects['k'].headers == {'content-type': 'text/css', 'cache-control': 'no-store', 'content-encoding': 'gzip',
                                             'x-amz-meta-a': 'b'}


def test_large_objects_are_copied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above what one request may copy: ranges of the version that was seen, with metadata and type."""
    monkeypatch.setattr('ctxfs.storage.s3_copy.COPY_MAX', 10)
    monkeypatch.setattr(s3_multipart, '_COPY_PART', 1)
    body = bytes(range(256)) * (80 << 10)
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        store.put('k', body, metadata={'a': 'b'}, content_type='text/css')
        copied = store.copy('k', 'j', condition=ABSENT)
        parts = {request.query['partNumber']: request.headers['x-amz-copy-source-range'] for request in fake.requests if is_part(request)}
        assert parts == {'1': 'bytes=0-8388607', '2': 'bytes=8388608-16777215', '3': 'bytes=16777216-20971519'}
        info = store.head('j')
        assert (info.etag, info.size, info.metadata, info.content_type) == (copied.etag, len(body), {'a': 'b'}, 'text/css')
        assert store.get('j') == body
        with pytest.raises(RemoteChanged):
            store.copy('k', 'j', condition=ABSENT)
        fake.quirks.add(Quirk.ERROR_IN_COPY)
        with pytest.raises(RemoteUnavailable, match='try again'):
            store.copy('k', 'i')
        assert (set(fake.objects), fake.uploads) == ({'k', 'j'}, {})


@pytest.mark.parametrize('fault', [Fault.LOSE_ANSWER, Fault.DROP])
def test_a_conditional_put_is_sent_once(fault: Fault) -> None:
    """Its outcome may be unknown: transient, and for the caller to find out."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        fake.fail_next('PUT', fault)
        with pytest.raises(RemoteUnavailable) as caught:
            store.put('k', b'x', condition=ABSENT)
        assert caught.value.transient
        assert len(fake.requests) == 1
        assert ('k' in fake.objects) == (fault is Fault.LOSE_ANSWER)


@pytest.mark.parametrize('fault', [Fault.UNAVAILABLE, Fault.SLOW_DOWN])
def test_a_conditional_put_that_a_busy_server_did_not_begin_is_sent_again(fault: Fault) -> None:
    """Until the server has no more room for it than for other requests."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        fake.fail_next('PUT', fault, times=2)
        store.put('k', b'x', condition=ABSENT)
        assert fake.objects['k'].body == b'x' and len(fake.requests) == 3
        fake.fail_next('PUT', fault, times=ATTEMPTS)
        with pytest.raises(RemoteUnavailable):
            store.put('j', b'x', condition=ABSENT)


def test_an_unconditional_put_is_sent_again_after_a_lost_connection() -> None:
    """Twice is as good as once."""
    with opened() as (fake, store):
        fake.fail_next('PUT', Fault.DROP)
        store.put('k', b'x')
        assert fake.objects['k'].body == b'x'


def test_a_conflict_in_flight_is_tried_again() -> None:
    """AWS answers 409 where two conditional requests meet; it is no verdict. A lasting one is transient."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        fake.fail_next('PUT', Fault.CONFLICT, times=2)
        store.put('k', b'x', condition=ABSENT)
        fake.fail_next('PUT', Fault.CONFLICT, times=4)
        with pytest.raises(RemoteUnavailable):
            store.put('j', b'x', condition=ABSENT)


def test_without_the_right_to_write_nothing_is_known() -> None:
    """A reader's credentials: no condition is claimed, and the answer is not remembered."""
    with opened() as (fake, store):
        fake.fail_next('PUT', Fault.DENY)
        assert store.capabilities() == UNKNOWN
        assert store.capabilities() == EVERYTHING


def test_a_probe_in_an_outage_raises_and_is_tried_again() -> None:
    """An outage is no answer about features."""
    with opened() as (fake, store):
        fake.fail_next('PUT', Fault.UNAVAILABLE, times=3 * ATTEMPTS)
        with pytest.raises(RemoteUnavailable):
            store.capabilities()
        assert store.capabilities() == EVERYTHING


def is_part(request: Request) -> bool:
    return 'partNumber' in request.query


@pytest.mark.parametrize('fault', [Fault.UNAVAILABLE, Fault.DENY])
def test_a_failed_part_ends_and_aborts_the_upload(fault: Fault) -> None:
    """Nothing of it stays on the server, and the error is the part's."""
    with opened() as (fake, store):
        fake.fail_next('PUT', fault, when=is_part, times=ATTEMPTS * s3_multipart.PARALLEL)
        with pytest.raises(Denied if fault is Fault.DENY else RemoteUnavailable):
            store.put_file('k', io.BytesIO(bytes(40 << 20)), 40 << 20)
        assert (fake.objects, fake.uploads) == ({}, {})


def test_a_part_with_a_lost_answer_is_sent_again() -> None:
    """A part is repeatable: it only becomes visible with the rest."""
    body = bytes(range(256)) * (80 << 10)
    with opened() as (fake, store):
        fake.fail_next('PUT', Fault.LOSE_ANSWER, when=is_part)
        store.put_file('k', io.BytesIO(body), len(body))
        assert fake.objects['k'].body == body


def test_a_busy_server_costs_a_part_and_not_the_upload() -> None:
    """Of three parts each is refused twice and comes again by itself."""
    body = bytes(range(256)) * (80 << 10)
    with opened() as (fake, store):
        fake.fail_next('PUT', Fault.SLOW_DOWN, when=is_part, times=3)
        store.put_file('k', io.BytesIO(body), len(body))
        assert fake.objects['k'].body == body and sum(map(is_part, fake.requests)) == 6
        assert sum('uploads' in request.query for request in fake.requests) == 1


@pytest.mark.parametrize('fault', [Fault.LOSE_ANSWER, Fault.DROP])
def test_the_answer_to_a_completion_is_lost(fault: Fault) -> None:
    """Whether the object is there is for the caller to find out: transient, whatever the abort of what may be complete says."""
    body = bytes(range(256)) * (80 << 10)
    with opened() as (fake, store):
        fake.fail_next('POST', fault, when=lambda request: 'uploadId' in request.query)
        with pytest.raises(RemoteUnavailable):
            store.put_file('k', io.BytesIO(body), len(body))
        assert ('k' in fake.objects) == (fault is Fault.LOSE_ANSWER) and fake.uploads == {}


def test_an_abort_that_fails_hides_nothing() -> None:
    """The caller sees why the upload was abandoned."""
    with opened() as (fake, store):
        fake.fail_next('DELETE', Fault.DENY)
        with pytest.raises(Aborted):
            store.put_file('k', io.BytesIO(bytes(BIG)), BIG, may_commit=lambda: False)
        assert fake.objects == {}


def test_a_large_file_is_read_with_bounded_memory() -> None:
    """However large the file: no more than PARALLEL parts are in memory."""
    size, held, most, lock = 100 << 20, 0, 0, threading.Lock()

    class Zeros(io.RawIOBase):
        def seek(self, offset: int, whence: int = 0) -> int:
            return offset

        def read(self, count: int = -1) -> bytes:
            nonlocal held, most
            with lock:
                held += 1
                most = max(most, held)
            return bytes(count)

    def sent(count: int) -> None:
        nonlocal held
        with lock:
            held -= 1
    with opened() as (fake, store):
        store.put_file('k', Zeros(), size, progress=sent)  # type: ignore[arg-type]
        assert len(fake.objects['k'].body) == size
    assert most <= s3_multipart.PARALLEL


@pytest.mark.parametrize('size', [BIG, 1 << 30, 8 << 30, 500 << 30, 5 << 40])
def test_parts_fit_the_limits_of_s3(size: int) -> None:
    """At most 10,000, each of at least 5 MiB and at most 5 GiB."""
    step = s3_multipart.part_size(size)
    assert 5 << 20 <= step <= 5 << 30
    assert -(-size // step) <= 10_000


@pytest.mark.parametrize('fault', [Fault.UNAVAILABLE, Fault.GARBAGE, Fault.DENY])
def test_a_batch_delete_that_fails_reports_every_key(fault: Fault) -> None:
    """None is taken for removed."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        store.put('a', b'')
        fake.fail_next('POST', fault, times=ATTEMPTS)
        failed = store.delete_many([('a', '"x"'), ('b', None)])
        assert [key for key, _ in failed] == ['a', 'b']


def test_odd_keys_are_deleted_without_xml() -> None:
    """XML cannot carry a control character; one DELETE for each of them, one POST for the rest."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        for key in ('a', 'b', 'c\x01', 'd\r'):
            store.put(key, b'')
        fake.requests.clear()
        assert store.delete_many([(key, None) for key in ('a', 'b', 'c\x01', 'd\r')]) == []
        assert sorted(request.method for request in fake.requests) == ['DELETE', 'DELETE', 'POST']
        assert fake.objects == {}


def test_a_listing_that_is_no_xml_is_transient() -> None:
    """A proxy's error page with status 200."""
    with opened() as (fake, store):
        fake.fail_next('GET', Fault.GARBAGE)
        with pytest.raises(RemoteUnavailable):
            store.list('')


def test_a_missing_bucket_is_not_a_missing_object() -> None:
    """A conditional write to a bucket that is gone is not "somebody removed the object"."""
    with opened(known=msgspec.to_builtins(EVERYTHING)) as (fake, store):
        fake.fail_next('PUT', Fault.NO_BUCKET)
        with pytest.raises(NotFound, match='bucket'):
            store.put('k', b'', condition=Condition(etag='"x"'))


def test_check_answers_in_time_when_the_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when no timeout of the socket ends the wait, as in a resolver: the deadline is check's own."""
    monkeypatch.setattr('ctxfs.storage.s3_store._CHECK_SECONDS', 0.2)
    with opened() as (fake, store):
        fake.fail_next('GET', Fault.HANG)
        with pytest.raises(RemoteUnavailable, match='did not answer'):
            store.check()
