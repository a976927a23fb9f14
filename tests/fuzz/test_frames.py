"""The pipe between daemon and workers, with anything on it: a worker that is out of step is replaced, and who waits gets an error."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.errors import Corrupted, CtxfsError
from ctxfs.sync import protocol
from ctxfs.sync.audit import Auditor
from ctxfs.sync.frames import LENGTH, MAX_FRAME, FrameReader
from ctxfs.sync.pool import Listener, TransferPool
from ctxfs.sync.protocol import (
    Check,
    CheckDone,
    DeleteDone,
    DeleteMany,
    Failed,
    Head,
    ListPages,
    Part,
    Progress,
    Ready,
    Reply,
    WorkerOptions,
)
from tests.fuzz.tools import MIB, bounded, fuzz, mutated, texts, values


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 9), min_size=1, max_size=20))
@fuzz
def test_frames_come_out_as_they_went_in(bodies: list[bytes], cuts: list[int]) -> None:
    """However the stream is cut."""
    stream, reader, found, at = b''.join(LENGTH.pack(len(body)) + body for body in bodies), FrameReader(), [], 0
    while at < len(stream):
        step = cuts[at % len(cuts)]
        found += reader.feed(stream[at:at + step])
        at += step
    assert found == bodies


@given(st.binary(max_size=60))
@fuzz
def test_any_stream_is_frames_or_refused(data: bytes) -> None:
    reader = FrameReader()
    try:
        bodies = reader.feed(data)
    except Corrupted:
        return
    assert sum(map(len, bodies)) <= len(data)


def test_a_frame_that_is_announced_takes_no_memory_before_it_comes() -> None:
    """The length is a claim; one beyond the bound is refused at once."""
    bounded(lambda: FrameReader().feed(LENGTH.pack(MAX_FRAME) + b'x'), megabytes=16)
    with pytest.raises(Corrupted):
        FrameReader().feed(LENGTH.pack(MAX_FRAME + 1))

    def drip() -> None:
        reader = FrameReader()
        reader.feed(LENGTH.pack(32 * MIB))
        for _ in range(32 * 1024 - 1):
            reader.feed(b'x' * 1024)
        assert reader.feed(b'x' * 1024) == [b'x' * 32 * MIB]
    bounded(drip, megabytes=200)


class Worker:
    """What the pool sees of a worker that says what the test wants; `asked` holds the ids of its requests."""

    def __init__(self, script: Callable[[list[int]], list[bytes]]) -> None:
        self.load = self.background = self.bulk = 0
        self.is_ready = False
        self.pid = 4711
        self.asked: list[int] = []
        self._script: Callable[[list[int]], list[bytes]] | None = script

    def send(self, data: bytes) -> None:
        for body in FrameReader().feed(data):
            message = protocol.decode_to_worker(body)
            if isinstance(message, protocol.Request):
                self.asked.append(message.id)

    async def receive(self) -> list[bytes] | None:
        await trio.lowlevel.checkpoint()
        if not self.is_ready:
            return [body_of(Ready(pid=1))]
        while len(self.asked) < 3:
            await trio.lowlevel.checkpoint()
        script, self._script = self._script, None
        return script(self.asked) if script else None


def body_of(message: Any) -> bytes:
    return protocol.frame(message)[LENGTH.size:]


def serve(script: Callable[[list[int]], list[bytes]], operations: Sequence[Any] = (Check(), Head(keys=['a']), ListPages(prefix='p/')),
          listener: Listener | None = None) -> list[Any]:
    """What three callers got from a pool whose one worker follows the script and then ends."""
    results: list[Any] = []

    async def caller(pool: TransferPool, operation: Any) -> None:
        try:
            if isinstance(operation, ListPages):
                async with pool.stream(operation) as pages:
                    results.append([page async for page in pages])
            else:
                results.append(await pool.call(operation))
        except CtxfsError as error:
            results.append(error)

    async def main() -> None:
        pool = TransferPool(WorkerOptions(store_url='', cache_dir='', cache_limit=0, host='h'), workers=1, keep_fds=())
        pool.listener = listener
        worker: Any = Worker(script)
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for operation in operations:
                        nursery.start_soon(caller, pool, operation)
                    await pool._serve(worker)
                    pool._forget(worker, 0)
        finally:
            pool.slots.close()
    trio.run(main)
    return results


raws = st.one_of(st.binary(max_size=20), values.map(ascii).map(msgspec.msgpack.encode),
                 st.sampled_from([msgspec.msgpack.encode(CheckDone()), msgspec.msgpack.encode([]), b'\x91' * 100_000]))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    number = draw(st.sampled_from([0, 1, 2, 3, 4, -1, 1 << 63]))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return body_of(Reply(id=number, value=msgspec.Raw(draw(raws)), cpu=draw(st.floats())))
    if kind == 1:
        return body_of(Part(id=number, value=msgspec.Raw(draw(raws))))
    if kind == 2:
        return body_of(Failed(id=number, name=draw(st.sampled_from(['NotFound', 'KeyError', '__doc__', 'annotations', ''])), message='m'))
    if kind == 3:
        return body_of(Progress(id=number, done=draw(st.sampled_from([-5, 0, 1 << 62]))))
    if kind == 4:
        return body_of(Ready(pid=draw(st.sampled_from([0, -1, 1 << 40]))))
    return draw(st.one_of(st.binary(max_size=30), mutated(st.just(body_of(Reply(id=1, value=msgspec.Raw(b'\x80')))))))


@given(st.lists(messages(), max_size=5))
@example([body_of(Reply(id=99, value=msgspec.Raw(b'\x80')))])
@example([body_of(Reply(id=1, value=msgspec.Raw(b'\xc1')))])
@example([body_of(Ready(pid=1)), body_of(Ready(pid=1))])
@example([body_of(Part(id=3, value=msgspec.Raw(b'\x91' * 100_000)))])
@example([b'\x91' * 100_000])
@fuzz
def test_whatever_a_worker_says_everybody_gets_an_answer(bodies: list[bytes]) -> None:
    """A result of the right type, or an error of ctxfs; and the pool goes on with the next worker."""
    results = serve(lambda asked: bodies)
    assert len(results) == 3
    assert all(isinstance(result, (CtxfsError, CheckDone, list)) for result in results)


def test_a_change_with_a_senseless_answer_is_told_as_unknown() -> None:
    """The audit log has a line for each change, and a worker that is out of step leaves none of its callers waiting."""
    told: list[tuple[Any, ...]] = []
    auditor = Auditor(lambda operation, *, result='ok', error='', **data: told.append((operation, data.get('key'), result)), prefix='')
    changes = [DeleteMany(items=[('a', None)]), DeleteMany(items=[('b', None)]), DeleteMany(items=[('c', None)])]
    results = serve(lambda asked: [body_of(Reply(id=asked[0], value=msgspec.Raw(b'\x80'))),
                                   body_of(Reply(id=asked[1], value=protocol.raw(DeleteDone(failures=[]))))], changes, auditor)
    assert sorted(type(result).__name__ for result in results) == ['Corrupted', 'DeleteDone', 'Unanswered']
    assert sorted(result for _, _, result in told) == ['ok', 'unknown', 'unknown'] and {key for _, key, _ in told} == {'a', 'b', 'c'}


def test_parts_beyond_what_was_asked_for_are_refused() -> None:
    """A worker that does not wait for its reader is out of step: the parts would pile up."""
    part = body_of(Part(id=3, value=protocol.raw({'objects': [], 'prefixes': [], 'next_token': None})))
    results = serve(lambda asked: [part] * 1000)
    assert sum(isinstance(result, CtxfsError) for result in results) == 3


@given(texts)
@fuzz
def test_an_error_survives_the_pipe(text: str) -> None:
    """With any message, also one that no encoding has."""
    for error in (CtxfsError(text), OSError(5, text), KeyError(text)):
        name, message_text = protocol.describe(error)
        assert body_of(Failed(id=1, name=name, message=message_text)) and isinstance(protocol.revive(name, message_text), CtxfsError)
