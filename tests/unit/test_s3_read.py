"""Bytes that came and are not the object's: what finds it, what is asked again, and what is no proof."""
from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.errors import Denied, RemoteChanged, WrongBytes
from ctxfs.records import Stamp
from ctxfs.storage import piece_sums
from ctxfs.storage.object_store import PARTS_ABOVE
from ctxfs.storage.piece_sums import PIECES, UNIT, Summer
from ctxfs.storage.posix_meta import encode_stamp
from ctxfs.storage.s3_http import Response
from ctxfs.storage.s3_multipart import part_size
from ctxfs.storage.s3_read import ATTEMPTS, Reader
from ctxfs.storage.s3_store import S3Store
from ctxfs.storage.s3_verify import EtagMaker, Part, Verdict, judge, part_of
from tests.servers import S3Server

BODY = bytes(range(256)) * 3
LARGE = os.urandom(3 * UNIT + 1000)


def md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def stamp_of(body: bytes, *, etag: str = '') -> str:
    summer = Summer(len(body))
    summer.update(body)
    return encode_stamp(Stamp(sha256=hashlib.sha256(body).hexdigest(), host='h', revision=1, etag=etag, sums=summer.sums().encode()))


def answer(body: bytes, *, etag: str | None = None, status: int = 200, **headers: str) -> Response:
    found = http.client.HTTPMessage()
    found['ETag'] = f'"{md5(body) if etag is None else etag}"'
    for name, value in headers.items():
        found[name.replace('_', '-')] = value
    return Response(status, found, body)


def flip(body: bytes, at: int = 100) -> bytes:
    return body[:at] + bytes([body[at] ^ 8]) + body[at + 1:]


# --- sums of pieces ------------------------------------------------------------------------------------------------------------------

@given(cuts=st.lists(st.integers(0, len(LARGE)), max_size=6), at=st.integers(0, len(LARGE) - 1))
def test_a_flipped_bit_is_found_in_the_piece_that_has_it(cuts: list[int], at: int) -> None:
    """However the content was cut when it was summed up; pieces that were fetched only in part, and other pieces, say nothing."""
    summer, edges = Summer(len(LARGE)), [0, *sorted(cuts), len(LARGE)]
    for start, stop in itertools.pairwise(edges):
        summer.update(LARGE[start:stop])
    sums = summer.sums()
    assert piece_sums.decode(sums.encode()) == sums
    assert not sums.disagrees(LARGE, 0, size=len(LARGE)) and sums.covers(0, len(LARGE), size=len(LARGE))
    wrong = flip(LARGE, at)
    piece = at // UNIT
    assert sums.disagrees(wrong, 0, size=len(LARGE))
    assert sums.disagrees(wrong[piece * UNIT:], piece * UNIT, size=len(LARGE))
    assert not sums.disagrees(wrong[piece * UNIT + 1:(piece + 1) * UNIT], piece * UNIT + 1, size=len(LARGE))
    assert not sums.disagrees(wrong, 0, size=5 * len(LARGE)), 'sums of another size'


@given(text=st.text(max_size=40) | st.builds(lambda n, b: f'{n}.{b}', st.integers(), st.text('AZaz09-_=', max_size=30)))
def test_sums_that_anybody_wrote_are_read_with_care(text: str) -> None:
    """Sums or nothing, never an error."""
    found = piece_sums.decode(text)
    if found is not None:
        found.disagrees(BODY, 0, size=len(BODY))
        found.covers(0, 10, size=len(BODY))


@pytest.mark.parametrize('size', [UNIT + 1, PIECES * UNIT, PIECES * UNIT + 1, 1 << 40, 5 << 40])
def test_sums_fit_into_the_metadata_of_any_object(size: int) -> None:
    """PIECES at most, which is less than half of what S3 allows."""
    step = piece_sums.step_for(size)
    count = -(-size // step)
    assert count <= PIECES and (step == UNIT or -(-size // (step // 2)) > PIECES)
    assert len(piece_sums.Sums(step, (1 << 31,) * count).encode()) < 1000


# --- the rules -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('response', 'start', 'stop', 'want'), [
    (answer(b'abc'), 0, None, Part(b'abc', 0, 3)),
    (answer(b'abc'), 1, 2, Part(b'abc', 0, 3)),
    (answer(b'bc', status=206, Content_Range='bytes 1-2/9'), 1, 3, Part(b'bc', 1, 9)),
    (answer(b'bc', status=206, Content_Range='bytes 7-8/9'), 7, 20, Part(b'bc', 7, 9)),
    (answer(b'bc', status=206, Content_Range='bytes 1-2/*'), 1, 3, Part(b'bc', 1, -1)),
    (answer(b'bc', status=206, Content_Range='bytes 2-3/9'), 1, 3, None),
    (answer(b'b', status=206, Content_Range='bytes 1-2/9'), 1, 3, None),
    (answer(b'bc', status=206, Content_Range='bytes 1-2/9'), 1, 5, None),
    (answer(b'bc', status=206), 1, 3, None),
    (answer(b'bc', status=206, Content_Range='bytes x'), 1, 3, None)])
def test_what_came_must_be_what_was_asked_for(response: Response, start: int, stop: int | None, want: Part | None) -> None:
    """By its length and its Content-Range."""
    assert part_of(response, start, stop) == want


KMS = {'x_amz_server_side_encryption': 'aws:kms'}


@pytest.mark.parametrize(('came', 'headers', 'are_md5', 'want'), [
    (BODY, {}, None, Verdict.RIGHT), (BODY, {}, True, Verdict.RIGHT), (flip(BODY), {}, True, Verdict.DAMAGED),
    (flip(BODY), {}, None, Verdict.DOUBTED), (flip(BODY), {}, False, Verdict.UNPROVEN), (flip(BODY), KMS, True, Verdict.UNPROVEN),
    (flip(BODY), {'etag': 'abc-2'}, True, Verdict.UNPROVEN),
    (BODY, {'etag': 'abc-2', 'x_amz_meta_ctxfs': stamp_of(BODY)}, True, Verdict.RIGHT),
    (flip(BODY), {'etag': 'abc-2', 'x_amz_meta_ctxfs': stamp_of(BODY, etag='abc-2')}, False, Verdict.DAMAGED),
    (flip(BODY), {'etag': 'abc-2', 'x_amz_meta_ctxfs': stamp_of(BODY, etag='abc-3')}, True, Verdict.DOUBTED),
    (flip(BODY), {'etag': 'abc-2', 'x_oss_meta_ctxfs': stamp_of(BODY, etag='abc-2')}, True, Verdict.DAMAGED),
    (BODY, {'x_amz_meta_ctxfs': stamp_of(flip(BODY), etag='abc-3')}, True, Verdict.RIGHT)])
def test_a_whole_object_is_judged(came: bytes, headers: dict[str, str], are_md5: bool | None, want: Verdict) -> None:
    """By its stamp, and by its etag where that is an MD5. A stamp of another version does no harm where the etag vouches for the bytes."""
    response = answer(came, **{'etag': md5(BODY), **headers})
    assert judge(response, Part(came, 0, len(came)), etag=response.headers['ETag'], are_md5=are_md5) is want


@pytest.mark.parametrize(('at', 'bound', 'want'), [
    (None, True, Verdict.RIGHT), (UNIT + 5, True, Verdict.DAMAGED), (UNIT + 5, False, Verdict.DOUBTED), (2 * UNIT + 5, True, Verdict.UNPROVEN)])
def test_a_part_is_judged_by_the_sums_of_its_pieces(at: int | None, bound: bool, want: Verdict) -> None:
    """Those that it has whole."""
    start, stop = UNIT, 2 * UNIT + (0 if want is not Verdict.UNPROVEN else 100)
    came = (LARGE if at is None else flip(LARGE, at))[start:stop]
    response = answer(came, etag='e-2', status=206, x_amz_meta_ctxfs=stamp_of(LARGE, etag='e-2' if bound else ''))
    assert judge(response, Part(came, start, len(LARGE)), etag='"e-2"', are_md5=True) is want


# --- asking again --------------------------------------------------------------------------------------------------------------------

class Client:
    """Takes a scratch object, and answers with an etag that is its MD5 or is not."""

    def __init__(self, *, are_md5: bool = True, may_write: bool = True) -> None:
        self.are_md5, self.may_write = are_md5, may_write
        self.asked: list[str] = []

    def request(self, method: str, key: str, *, body: bytes = b'', **_: Any) -> Response:
        self.asked.append(method)
        if not self.may_write:
            raise Denied('read only')
        return answer(body) if self.are_md5 else answer(body, etag='0' * 32)


def read(client: Client, *answers: Response) -> bytes:
    given_: Iterator[Response] = iter(answers)
    return Reader(client, 'scratch/').read(lambda: next(given_), 'k', None, 0, None).data  # type: ignore[arg-type]


RIGHT, WRONG = answer(BODY), answer(flip(BODY), etag=md5(BODY))


def test_right_bytes_are_taken_after_wrong_ones() -> None:
    """However many wrong ones came before, up to the bound; nothing else is asked."""
    client = Client()
    assert read(client, WRONG, answer(flip(BODY, 7), etag=md5(BODY)), RIGHT) == BODY and client.asked == []


@pytest.mark.parametrize(('client', 'is_damaged'), [(Client(), True), (Client(are_md5=False), False), (Client(may_write=False), False)])
def test_the_same_wrong_bytes_twice_are_damage_only_where_the_etag_is_an_md5(client: Client, is_damaged: bool) -> None:
    """That is found out by one scratch object. Where it is not so, or cannot be found out, the store has what it sends."""
    if is_damaged:
        with pytest.raises(WrongBytes):
            read(client, *[WRONG] * ATTEMPTS)
    else:
        assert read(client, *[WRONG] * 2) == WRONG.body
    assert client.asked in (['PUT', 'DELETE'], ['PUT'])


def test_a_stale_stamp_costs_one_more_request() -> None:
    """Another tool rewrote the object in parts and kept its metadata: it comes twice the same, so it is the store's."""
    stale = answer(flip(BODY), etag='abc-2', x_amz_meta_ctxfs=stamp_of(BODY, etag='abc-1'))
    assert read(Client(), stale, stale) == flip(BODY)


def test_another_version_is_no_damage() -> None:
    """Whoever asks for one version gets RemoteChanged."""
    with pytest.raises(RemoteChanged):
        Reader(Client(), 's/').read(lambda: RIGHT, 'k', '"other"', 0, None)  # type: ignore[arg-type]


# --- what a real server says ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [0, 5, PARTS_ABOVE, PARTS_ABOVE + 1, 2 * part_size(PARTS_ABOVE + 1)])
def test_the_etag_of_an_upload_is_foretold(size: int, s3_server: S3Server, s3_endpoint: str) -> None:
    """In one piece and in parts, so that the stamp is bound to its version."""
    store = S3Store(s3_server.make_bucket(), endpoint=s3_endpoint)
    body = os.urandom(size)
    maker: EtagMaker = store.etag_maker(size)
    for start in range(0, size, 3_000_001):
        maker.update(body[start:start + 3_000_001])
    assert f'"{maker.etag()}"' == store.put_file('k', io.BytesIO(body), size).etag
    assert store.proves(f'"{md5(body)}"', lambda: [body]) and not store.proves(f'"{md5(body + b"x")}"', lambda: [body])
    assert store.proves('"abc-2"', lambda: [b'anything'])
    store.close()
