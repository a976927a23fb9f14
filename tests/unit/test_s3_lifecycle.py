"""Lifecycle rules of a bucket: ours is added once, everybody else's stays, whoever writes at the same time."""
from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pytest

from ctxfs.errors import Denied, Exists, RemoteUnavailable, Unsupported
from ctxfs.storage import s3_lifecycle
from ctxfs.storage.object_store import PARTS_ABOVE, Condition
from ctxfs.storage.s3_store import S3Store
from tests.fakes.s3_server import FakeS3, Quirk
from tests.servers import S3Server

TAG = ('ctxfs-lifecycle', 'Lifecycle_30Days')
ID = 'ctxfs-Lifecycle_30Days'
#: with things that ctxfs knows nothing of, and whitespace
FOREIGN = b'''<?xml version="1.0"?>
<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <!-- by the platform team -->
  <Rule><ID>archive</ID><Filter><And><Prefix>a &amp; b/</Prefix><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter>
    <Status>Enabled</Status><Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>
  <Rule><ID>odd</ID><Status>Disabled</Status><x:Magic xmlns:x="urn:x" level="9">yes</x:Magic></Rule>
</LifecycleConfiguration>
'''
OURS = (b'<Rule><ID>ctxfs-Lifecycle_30Days</ID><Filter><Tag><Key>ctxfs-lifecycle</Key><Value>Lifecycle_30Days</Value></Tag></Filter>'
        b'<Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>')


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    monkeypatch.setattr(s3_lifecycle, '_PAUSE_SECONDS', 0.0)


@contextlib.contextmanager
def opened(*quirks: Quirk) -> Iterator[tuple[FakeS3, S3Store]]:
    with FakeS3(quirks=quirks) as fake, contextlib.closing(S3Store(fake.bucket, endpoint=fake.endpoint)) as store:
        store.capabilities()
        fake.requests.clear()
        yield fake, store


def ensure(store: S3Store) -> None:
    store.ensure_expiry(ID, tag=TAG, days=30)


def test_the_first_rule_is_made() -> None:
    """Read, write, read back; the second time it is only read."""
    with opened() as (fake, store):
        ensure(store)
        assert OURS in fake.lifecycle
        assert [request.method for request in fake.requests] == ['GET', 'PUT', 'GET']
        ensure(store)
        assert [request.method for request in fake.requests] == ['GET', 'PUT', 'GET', 'GET']


def test_foreign_rules_stay_byte_for_byte() -> None:
    """Also elements, attributes and comments that ctxfs does not know; ours stands behind them."""
    with opened() as (fake, store):
        fake.lifecycle = FOREIGN
        ensure(store)
        assert fake.lifecycle == FOREIGN.replace(b'</LifecycleConfiguration>', OURS + b'</LifecycleConfiguration>')
        store.ensure_expiry('ctxfs-Lifecycle_1Day', tag=('ctxfs-lifecycle', 'Lifecycle_1Day'), days=1)
        assert fake.lifecycle.count(b'<Rule>') == 4
        assert fake.lifecycle.startswith(FOREIGN.partition(b'</LifecycleConfiguration>')[0] + OURS)


def test_a_real_server_takes_the_rules(s3_server: S3Server, s3_endpoint: str) -> None:
    """One that parses them: the foreign rule is there afterwards as boto3 reads it, beside ours."""
    bucket = s3_server.make_bucket()
    foreign = {'ID': 'theirs', 'Status': 'Enabled', 'Filter': {'Prefix': 'tmp/'}, 'Expiration': {'Days': 3},
               'AbortIncompleteMultipartUpload': {'DaysAfterInitiation': 1}}
    with contextlib.closing(s3_server.client()) as client, contextlib.closing(S3Store(bucket, endpoint=s3_endpoint)) as store:
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={'Rules': [foreign]})
        before = client.get_bucket_lifecycle_configuration(Bucket=bucket)['Rules']
        ensure(store)
        ensure(store)
        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)['Rules']
        assert rules[:-1] == before
        assert rules[-1] == {'ID': ID, 'Status': 'Enabled', 'Filter': {'Tag': {'Key': TAG[0], 'Value': TAG[1]}}, 'Expiration': {'Days': 30}}


@pytest.mark.parametrize('change', [(b'<Days>30<', b'<Days>7<'), (b'Enabled', b'Disabled'), (b'>Lifecycle_30Days</V', b'>mine</V')], ids=str)
def test_a_rule_with_our_id_that_says_something_else_is_left(change: tuple[bytes, bytes]) -> None:
    """An administrator changed it: refused with what differs, and nothing is written."""
    with opened() as (fake, store):
        fake.lifecycle = FOREIGN.replace(b'</LifecycleConfiguration>', OURS.replace(*change) + b'</LifecycleConfiguration>')
        with pytest.raises(Exists, match='says something else'):
            ensure(store)
        assert [request.method for request in fake.requests] == ['GET']


def test_empty_elements_that_a_server_adds_change_nothing() -> None:
    """`<Prefix/>` says what its absence says."""
    with opened() as (fake, store):
        fake.lifecycle = b'<LifecycleConfiguration>' + OURS.replace(b'<Status>', b'<Prefix></Prefix><Status>') + b'</LifecycleConfiguration>'
        ensure(store)
        assert [request.method for request in fake.requests] == ['GET']


def test_a_writer_at_the_same_time_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts a set without our rule between our write and the reading back: it is added once more, theirs stays."""
    with opened() as (fake, store):
        sets = [FOREIGN]
        write = s3_lifecycle._write

        def write_and_be_overwritten(*arguments: object) -> None:
            write(*arguments)  # type: ignore[arg-type]
            if sets:
                fake.lifecycle = sets.pop()
        monkeypatch.setattr(s3_lifecycle, '_write', write_and_be_overwritten)
        ensure(store)
        assert OURS in fake.lifecycle and b'urn:x' in fake.lifecycle
        sets += [FOREIGN.replace(OURS, b'')] * 20
        fake.lifecycle = FOREIGN
        with pytest.raises(RemoteUnavailable, match='keep changing'):
            ensure(store)


def test_the_setting_of_the_whole_set_is_sent_again() -> None:
    """AWS resets the smallest size for transitions to its default when the header is missing."""
    with opened() as (fake, store):
        fake.lifecycle = FOREIGN
        fake.lifecycle_headers = {'x-amz-transition-default-minimum-object-size': 'varies_by_storage_class'}
        ensure(store)
        [put] = [request for request in fake.requests if request.method == 'PUT']
        assert put.headers['x-amz-transition-default-minimum-object-size'] == 'varies_by_storage_class'
        assert re.fullmatch('[A-Za-z0-9+/]{22}==', put.headers['content-md5'])


@pytest.mark.parametrize(('quirk', 'error'), [(Quirk.NO_LIFECYCLE, Unsupported), (Quirk.NO_LIFECYCLE_RIGHTS, Unsupported),
                                              (Quirk.READ_ONLY_LIFECYCLE, Denied), (Quirk.NO_TAGS, Unsupported),
                                              (Quirk.REFUSES_TAGS, Unsupported)], ids=str)
def test_a_store_that_cannot_expire_says_so(quirk: Quirk, error: type[Exception]) -> None:
    """No rules, no right to them, or no tags that they could go by."""
    with opened(quirk) as (fake, store):
        with pytest.raises(error):
            ensure(store)
        assert fake.lifecycle == b''


@pytest.mark.parametrize('quirk', [Quirk.NO_TAGS, Quirk.REFUSES_TAGS], ids=str)
def test_no_tag_is_sent_to_a_store_without_tags(quirk: Quirk) -> None:
    """The write is done as if none had been given: one request."""
    with opened(quirk) as (fake, store):
        store.put('a', b'body', tags={'k': 'v'})
        store.copy('a', 'b', tags={'k': 'v'})
        assert not [request for request in fake.requests if any('tagging' in name for name in request.headers)]


def test_tags_of_a_large_file_come_with_its_beginning() -> None:
    """CreateMultipartUpload carries them."""
    size = PARTS_ABOVE + 1
    with opened() as (fake, store):
        store.put_file('large', io.BytesIO(bytes(size)), size, tags={'k': 'v w'})
        assert store.tags('large') == {'k': 'v w'}
        starts = [request for request in fake.requests if 'uploads' in request.query]
        assert [request.headers['x-amz-tagging'] for request in starts] == ['k=v%20w']


def test_a_copy_in_parts_carries_the_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts know no source tags: they are read and given anew, or replaced."""
    monkeypatch.setattr('ctxfs.storage.s3_copy.COPY_MAX', 3)
    with opened() as (fake, store):
        etag = store.put('a', b'body', tags={'k': 'v'}).etag
        store.copy('a', 'kept', source_etag=etag, size=4)
        store.copy('a', 'new', source_etag=etag, size=4, tags={'n': 'w'})
        assert (store.tags('kept'), store.tags('new')) == ({'k': 'v'}, {'n': 'w'})
        assert (fake.objects['kept'].body, fake.objects['new'].body) == (b'body', b'body')


def test_a_copy_of_what_is_known_is_one_request() -> None:
    """Etag and size given: no HEAD of the source, and none of the target where its condition is honoured."""
    with opened() as (fake, store):
        etag = store.put('a', b'body').etag
        fake.requests.clear()
        store.copy('a', 'b', source_etag=etag, size=4)
        store.copy('a', 'c', source_etag=etag, size=4, condition=Condition(absent=True), tags={'k': 'v'})
        assert [(request.method, request.key) for request in fake.requests] == [('PUT', 'b'), ('PUT', 'c')]
        assert {request.headers['x-amz-copy-source-if-match'] for request in fake.requests} == {etag}
