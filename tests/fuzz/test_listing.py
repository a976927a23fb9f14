"""Listings and other answers of a server that anybody wrote: in order, within the prefix and in bounded memory, or refused."""
from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.errors import CtxfsError, NotFound, RemoteUnavailable
from ctxfs.records import ListPage, ObjectInfo
from ctxfs.storage import http_body, s3_http, s3_lifecycle, s3_xml
from ctxfs.storage.listing import MAX_EMPTY_PAGES, ListingCheck, pages
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.registry import Registry
from ctxfs.storage.s3_store import S3Store
from ctxfs.sync import protocol, worker_ops_read
from ctxfs.sync.index_log import IndexLog
from tests.fuzz.hostile_server import Answer, HostileServer, response
from tests.fuzz.tools import MIB, bounded, fuzz, integers, mutated, texts, values

INT64_MAX = (1 << 63) - 1


def entry(key: str = 'p/a', size: object = 1, etag: str = '"e"', modified: str = '2024-01-02T03:04:05.678Z') -> str:
    return (f'<Contents><Key>{escape(key)}</Key><Size>{escape(str(size))}</Size><ETag>{escape(etag)}</ETag>'
            f'<LastModified>{escape(modified)}</LastModified></Contents>')


def listing(*entries: str, token: str | None = None, encoding: str = '', head: str = '<?xml version="1.0" encoding="UTF-8"?>') -> bytes:
    more = '' if token is None else f'<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>'
    return (f'{head}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{more}{encoding}{"".join(entries)}'
            '</ListBucketResult>').encode('utf-8', 'surrogatepass')


def check(page: ListPage) -> None:
    """What the rest relies on: SQLite's integers, text that can be sent."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(page), type=ListPage) == page
    assert all(0 <= info.size <= INT64_MAX and info.mtime_ns <= INT64_MAX for info in page.objects)


plain = texts.filter(lambda text: not any(ord(c) < 32 or 0xd800 <= ord(c) < 0xe000 or c in '\ufffe\uffff' for c in text))


@given(st.lists(st.builds(entry, key=plain.map('p/'.__add__) | plain, size=st.one_of(integers, plain), etag=plain,
                          modified=st.one_of(plain, st.just('9999-12-31T23:59:59Z'), st.just('0001-01-01T00:00:00.9999999999Z')))), st.booleans())
@fuzz
def test_a_listing_of_anything_is_in_bounds_or_no_listing(entries: list[str], is_encoded: bool) -> None:
    """Keys outside the prefix, sizes and times beyond all integers: a ValueError, which the store turns into RemoteUnavailable."""
    with contextlib.suppress(ValueError):
        check(s3_xml.parse_listing(listing(*entries, encoding='<EncodingType>url</EncodingType>' * is_encoded), strip='p/'))


GOOD = listing(entry('p/a'), entry('p/b'), token='t')
DOCUMENTS = [GOOD, b'<Error><Code>a</Code><Message>b</Message></Error>', b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>',
             b'<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>',
             b'<DeleteResult><Error><Key>a</Key><Code>b</Code></Error></DeleteResult>',
             b'<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status></Rule></LifecycleConfiguration>']


@given(st.one_of(st.binary(max_size=100), mutated(st.sampled_from(DOCUMENTS))))
@example(b'<?xml version="1.0" encoding="cp037"?><a/>')
@example(b'<?xml version="1.0" encoding="no such"?><a/>')
@fuzz
def test_any_bytes_are_a_document_or_none(body: bytes) -> None:
    """Of each kind that a server sends: its values, or ValueError; errors and rules are read without one."""
    for parse in (s3_xml.parse_copy_etag, s3_xml.parse_tags, s3_xml.parse_delete_errors, lambda body: check(s3_xml.parse_listing(body, strip='p/'))):
        with contextlib.suppress(ValueError):
            parse(body)
    s3_xml.parse_error(body)
    if s3_lifecycle.is_lifecycle(body):
        s3_lifecycle._rules(body)


@pytest.mark.parametrize('body', [
    *DOCUMENTS[1:], b'<html><body>log in</body></html>', b'<ListBucketResults/>', b'<a:ListBucketResult xmlns:a="b"><c/></a:ListBucketResult>'])
def test_only_a_listing_is_one(body: bytes) -> None:
    """A page of a proxy, or an answer to something else, is no empty listing: all files would count as deleted."""
    if b'xmlns:a' in body:
        assert s3_xml.parse_listing(body, strip='') == page()
        return
    with pytest.raises(ValueError, match='no listing'):
        s3_xml.parse_listing(body, strip='')


LAUGHS = '<!DOCTYPE a [<!ENTITY a0 "ha">' + ''.join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)) + ']>'
BOMBS: dict[str, Callable[[], bytes]] = {
    'entities': lambda: listing(entry('p/a').replace('p/a', '&a11;'), head=LAUGHS),
    'one long entity': lambda: listing('&b;' * 50_000, head=f'<!DOCTYPE a [<!ENTITY b "{"x" * 50_000}">]>'),
    'an external entity': lambda: listing('&c;', head='<!DOCTYPE a [<!ENTITY c SYSTEM "file:///etc/passwd">]>'),
    'entities in UTF-16': lambda: listing(head=LAUGHS).decode().encode('utf-16'),
    'another encoding': lambda: listing(head='<?xml version="1.0" encoding="cp037"?>'),
    'nesting': lambda: b'<a>' * 2_000_000, 'nesting that ends': lambda: b'<a>' * 150_000 + b'</a>' * 150_000,
    'many tags': lambda: listing('<a/>' * 1_000_000),
    'a long size': lambda: listing(entry(size='9' * 1_000_000)),
}


@pytest.mark.parametrize('name', BOMBS)
def test_a_document_that_is_a_bomb_is_refused_in_little_memory_and_time(name: str) -> None:
    """As a listing, and wherever else a server's XML is read."""
    body = BOMBS[name]()
    with pytest.raises(ValueError):
        bounded(lambda: s3_xml.parse_listing(body, strip='p/'))
    assert not bounded(lambda: s3_lifecycle.is_lifecycle(body)) and bounded(lambda: s3_xml.parse_error(body)) == ('', '')


# --- pages -----------------------------------------------------------------------------------------------------------------------

def page(*keys: str, token: str | None = None) -> ListPage:
    return ListPage(objects=[ObjectInfo(key=key, size=0, etag='', mtime_ns=0) for key in keys], prefixes=[], next_token=token)


class Pages:
    """A store that lists the given pages, then the last one again and again."""

    def __init__(self, made: Iterable[ListPage]) -> None:
        self._made = iter(made)
        self._last = page()
        self.asked = 0

    def list(self, prefix: str, **how: Any) -> ListPage:
        self.asked += 1
        self._last = next(self._made, self._last)
        return self._last


class Context:
    """What the worker's listing needs of its context."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.helpers = self

    def submit(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> Future[Any]:
        made: Future[Any] = Future()
        try:
            made.set_result(function(*arguments, **more))
        except Exception as error:
            made.set_exception(error)
        return made


class Parts(list):  # type: ignore[type-arg]
    """The pages that a worker hands over."""

    part = list.append


WRONG = {
    'outside': [page('p/a', 'q')], 'above': [page('p')], 'a path that leads out': [page('../p/a')], 'not in order': [page('p/b', 'p/a')],
    'twice': [page('p/a', 'p/a')], 'twice on two pages': [page('p/a', token='1'), page('p/a', token='2')],
    'back on the second page': [page('p/b', token='1'), page('p/a')], 'the same token for ever': [page(token='1')],
    'a token in a circle': [page('p/a', token='1'), page('p/b', token='2'), page('p/a', token='1')],
}


@pytest.mark.parametrize('name', WRONG)
def test_a_listing_that_is_none_is_refused(name: str) -> None:
    """Before anything is taken for deleted, and before it goes round for ever; whoever lists."""
    for walk in (lambda store: list(pages(store, 'p/')), lambda store: list(Registry(store)._keys('p/')),
                 lambda store: worker_ops_read.list_pages(Context(store), protocol.ListPages(prefix='p/'), Parts())):
        store: Any = Pages(WRONG[name])
        with pytest.raises(RemoteUnavailable):
            walk(store)
        assert store.asked <= 3


def test_the_index_is_listed_with_the_same_care() -> None:
    """One of its own objects among others' keys."""
    store: Any = Pages([page('p/.ctxfs/index/' + '1' * 20 + '-h-0.seg.zst', 'p/a')])
    with pytest.raises(RemoteUnavailable):
        IndexLog(store, 'p/', host='h').read()


def test_empty_pages_without_end_are_refused() -> None:
    """A server may send some, with a new token each time; not for ever."""
    store = Pages(page(token=str(n)) for n in itertools.count())
    with pytest.raises(RemoteUnavailable, match='does not come to an end'):
        list(pages(store, 'p/'))  # type: ignore[arg-type]
    assert store.asked == MAX_EMPTY_PAGES + 1
    some = [*(page(token=str(n)) for n in range(MAX_EMPTY_PAGES)), page('p/a', token='x'), page('p/b')]
    assert len(list(pages(Pages(some), 'p/'))) == len(some)  # type: ignore[arg-type]


keys = st.text('ab/é\U0001f600\uffee', min_size=1, max_size=4).map('p/'.__add__)


@given(st.sets(keys, max_size=12), st.integers(1, 5), st.integers(0, 11), st.integers(0, 11))
@fuzz
def test_a_right_listing_passes_and_one_with_two_keys_exchanged_does_not(names: set[str], size: int, one: int, other: int) -> None:
    """Whatever the pages' length."""
    def walk(order: list[str]) -> list[str]:
        cut = [order[at:at + size] for at in range(0, len(order), size)] or [[]]
        made = [page(*some, token=str(number) if number < len(cut) - 1 else None) for number, some in enumerate(cut)]
        return [info.key for found in pages(Pages(made), 'p/') for info in found.objects]  # type: ignore[arg-type]
    order = sorted(names, key=str.encode)
    assert walk(order) == order
    if one < other < len(order):
        order[one], order[other] = order[other], order[one]
        with pytest.raises(RemoteUnavailable):
            walk(order)


def test_prefixes_are_checked_too() -> None:
    """Common prefixes have an order of their own."""
    check_ = ListingCheck('p/')
    check_.take(ListPage(objects=page('p/b').objects, prefixes=['p/a/', 'p/c/'], next_token='1'))
    with pytest.raises(RemoteUnavailable):
        check_.take(ListPage(objects=[], prefixes=['p/b/'], next_token=None))


# --- over HTTP -------------------------------------------------------------------------------------------------------------------

@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


@contextlib.contextmanager
def served(answer: Answer) -> Iterator[S3Store]:
    with HostileServer(answer) as server, contextlib.closing(S3Store('bucket', 'p', endpoint=server.endpoint)) as store:
        yield store


@pytest.mark.parametrize('headers', [
    'Content-Length: -5', 'Content-Length: many', 'Content-Length: ' + '9' * 30, 'Content-Length: 1_0',
    'Last-Modified: Fri, 31 Dec 9999 23:59:59 GMT',
    'Last-Modified: never', 'ETag: \x01', 'x-amz-meta-mode: \xff', 'x-amz-meta-' + 'a' * 60_000 + ': 1', 'X: ' + 'a' * 70_000,
    '\r\n'.join(f'X-{n}: 1' for n in range(200)),
    'Transfer-Encoding: chunked', 'Content-Encoding: gzip', ': ', 'Location: file:///etc/passwd'], ids=lambda text: text[:20])
def test_headers_of_any_kind_are_understood_or_refused(headers: str) -> None:
    """To a HEAD and to a GET."""
    with served(lambda line: f'HTTP/1.1 200 OK\r\n{headers}\r\nConnection: close\r\n\r\nab'.encode('latin-1')) as store:
        for ask in (lambda: store.head('k'), lambda: store.get('k'), lambda: store.get('k', 0, 2), lambda: store.list('')):
            try:
                found = ask()
            except CtxfsError:
                continue
            assert msgspec.msgpack.encode(found)
            if isinstance(found, ObjectInfo):
                assert 0 <= found.size <= INT64_MAX and abs(found.mtime_ns) <= INT64_MAX


ENDLESS: dict[str, Callable[[str], Iterable[bytes]]] = {
    'until the end': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\n\r\n'], itertools.repeat(b'a' * MIB)),
    'chunks': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'],
                                           itertools.repeat(b'100000\r\n' + b'a' * MIB + b'\r\n')),
    'a negative chunk': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n'], itertools.repeat(b'a' * MIB)),
    'a huge chunk': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', b'f' * 15 + b'\r\n'],
                                                 itertools.repeat(b'a' * MIB)),
    'announced': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n'], itertools.repeat(b'a' * MIB)),
    'an error': lambda line: itertools.chain([b'HTTP/1.1 500 No\r\n\r\n'], itertools.repeat(b'a' * MIB)),
}


@pytest.mark.parametrize('name', ENDLESS)
def test_a_body_without_end_takes_no_more_memory_than_its_bound(name: str) -> None:
    """Of a listing, and of an object asked for by range or whole."""
    for method in ('list', 'get', 'range'):
        with served(ENDLESS[name]) as store:
            ask = {'list': lambda: store.list('x'), 'get': lambda: store.get('x'), 'range': lambda: store.get('x', 0, 10)}[method]
            with pytest.raises(RemoteUnavailable):
                bounded(ask, megabytes=400)


TRICKLES: dict[str, Callable[[str], Iterable[bytes]]] = {
    'a body': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n'], slowly(b'a')),
    'headers': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\n'], slowly(b'X: 1\r\n')),
    'continue': lambda line: slowly(b'HTTP/1.1 100 Continue\r\n\r\n'),
    'trailers': lambda line: itertools.chain([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n'], slowly(b'X: 1\r\n')),
}


def slowly(piece: bytes) -> Iterator[bytes]:
    while True:
        time.sleep(0.005)
        yield piece


@pytest.mark.parametrize('name', TRICKLES)
def test_an_answer_that_trickles_in_for_ever_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the socket's timeout, and the whole never does."""
    monkeypatch.setattr(http_body, 'MIN_RATE', 1 << 40)
    quick = s3_http.Timeouts(read=0.1)
    with served(TRICKLES[name]) as store, pytest.raises(RemoteUnavailable):
        bounded(lambda: store._list({'prefix': 'x'}, timeouts=quick, is_repeatable=False))


def test_a_listing_of_other_keys_is_refused_by_the_store() -> None:
    """A store that lies below a prefix of the bucket never hands out a key that does not."""
    for key in ('q/a', 'p', '../p/a', ''):
        body = listing(entry(quote(key)), encoding='<EncodingType>url</EncodingType>')
        with served(lambda line, body=body: response(body)) as store, pytest.raises(RemoteUnavailable):     # type: ignore[misc]
            store.list('')


def test_a_server_that_ignores_ranges_is_no_way_into_memory(tmp_path: Path) -> None:
    """A small object that comes whole is cut; a large one is refused."""
    with served(lambda line: response(b'0123456789', 'ETag: "e"')) as store:
        assert store.get('k', 2, 4, if_match='"e"') == b'23'
    with served(lambda line: b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n') as store, pytest.raises(NotFound):
        store.get('k', 2, 4)


@given(values)
@fuzz
def test_what_is_remembered_of_a_server_is_believed_or_found_out_again(known: Any) -> None:
    """Whatever the file said."""
    found = known if isinstance(known, dict) else {'conditional_create': known, 'batch_delete': True}
    with contextlib.closing(S3Store('bucket', endpoint='http://127.0.0.1:9', known=found)) as store:
        assert store._guard._known is None or isinstance(store._guard._known, Capabilities)
