"""The control socket with real sockets: the protocol's answers, and clients that misbehave."""
from __future__ import annotations

import json
import logging
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
import trio.testing

from ctxfs.edge import control
from ctxfs.edge.client import ControlClient, DaemonGone, NoAnswer
from ctxfs.errors import CtxfsError, InvalidArgument, NotFound
from ctxfs.sync import events
from ctxfs.sync.events import EventHub


class Methods:
    """What the tests call; `gate` holds `slow` back."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.cancelled = trio.Event()
        self.running = 0
        self.events = EventHub()

    async def echo(self, a, b=2):
        await trio.lowlevel.checkpoint()
        return [a, b]

    async def missing(self):
        raise NotFound('no such file: x')

    async def bug(self):
        raise KeyError('oops')

    async def unprintable(self):
        return '\udcff'

    async def big(self):
        return 'x' * (4 << 20)

    async def slow(self):
        self.running += 1
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return 'done'

    async def count(self, to):
        for i in range(to):
            yield i

    async def typed(self, mode: Literal['a', 'b'] = 'a', number: float | None = None, names: list[str] | None = None) -> list[Any]:
        return [mode, number, names]

    async def watch(self, kinds: list[str] | None = None) -> AsyncIterator[dict[str, Any]]:
        listener = self.events.subscribe(kinds)
        try:
            yield {'kind': 'watching'}
            while (event := await listener.next()) is not None:
                yield event
        finally:
            self.events.leave(listener)

    def mapping(self):
        return {name: getattr(self, name)
                for name in ('echo', 'missing', 'bug', 'unprintable', 'big', 'slow', 'count', 'typed', 'watch')}


@asynccontextmanager
async def served(path):
    methods = Methods()
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, str(path), methods.mapping())
        yield methods
        nursery.cancel_scope.cancel()


async def connect(path) -> trio.SocketStream:
    return await trio.open_unix_socket(str(path))


async def read_line(stream) -> dict:
    data = b''
    with trio.fail_after(10):
        while not data.endswith(b'\n'):
            piece = await stream.receive_some(1 << 20)
            assert piece, f'the connection ended after {data[:200]!r}'
            data += piece
    return json.loads(data)


async def ask(stream, line) -> dict:
    await stream.send_all(line if isinstance(line, bytes) else json.dumps(line).encode() + b'\n')
    return await read_line(stream)


def in_trio(test, *, clock=None):
    async def bounded():
        with trio.fail_after(10_000 if clock else 30):
            await test()
    trio.run(bounded, clock=clock)


def jumping_clock():
    """Time passes at once whenever nothing else happens."""
    return trio.testing.MockClock(autojump_threshold=0.02)


def request(method, params=None, ident=1):
    return {'jsonrpc': '2.0', 'id': ident, 'method': method, **({} if params is None else {'params': params})}


def test_params_by_name_and_by_position(tmp):
    """Both forms of JSON-RPC work, and the id comes back as it went."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            assert await ask(stream, request('echo', {'a': 1}, 'x')) == {'jsonrpc': '2.0', 'id': 'x', 'result': [1, 2]}
            assert (await ask(stream, request('echo', [1, 5], 1.5)))['result'] == [1, 5]
    in_trio(test)


@pytest.mark.parametrize('line, code', [
    (b'{not json\n', control.PARSE_ERROR), (b'\xff\xfe\n', control.PARSE_ERROR), (b'[' * 100_000 + b'\n', control.PARSE_ERROR),
    (b'[]\n', control.INVALID_REQUEST), (b'5\n', control.INVALID_REQUEST), ({'id': 1, 'method': 'echo'}, control.INVALID_REQUEST),
    ({'jsonrpc': '2.0', 'id': 1, 'method': 5}, control.INVALID_REQUEST), ({'jsonrpc': '2.0', 'id': [], 'method': 'echo'}, control.INVALID_REQUEST),
    (request('nothing'), control.METHOD_NOT_FOUND), (request('__class__'), control.METHOD_NOT_FOUND),
    (request('echo', {'z': 1}), control.INVALID_PARAMS), (request('echo'), control.INVALID_PARAMS), (request('echo', 'a'), control.INVALID_PARAMS),
])
def test_protocol_errors(tmp, line, code):
    """A wrong request gets its code, and the connection lives on."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            assert (await ask(stream, line))['error']['code'] == code
            assert (await ask(stream, request('echo', [3])))['result'] == [3, 2]
    in_trio(test)


@pytest.mark.parametrize('params, said', [({'mode': 'c'}, 'mode'), ({'mode': None}, 'mode'), ({'number': '1'}, 'number'),
                                          ({'names': 'x'}, 'names'), ({'names': [1]}, 'names'), (['a', []], 'number')])
def test_parameters_of_another_type_are_refused(tmp, params, said):
    """By the protocol's error, naming the parameter, before the method sees them."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            error = (await ask(stream, request('typed', params)))['error']
            assert error['code'] == control.INVALID_PARAMS and said in error['message']
            assert (await ask(stream, request('typed', {'number': 1, 'names': ['x']})))['result'] == ['a', 1, ['x']]
    in_trio(test)


def test_expected_errors_keep_their_class_and_errno(tmp):
    """A ctxfs error arrives as what it is."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            error = (await ask(stream, request('missing')))['error']
            assert error == {'code': -32000, 'message': 'no such file: x', 'data': {'errno': 'ENOENT', 'kind': 'NotFound'}}
    in_trio(test)


@pytest.mark.parametrize('method', ['bug', 'unprintable'])
def test_a_bug_in_a_method_is_logged_and_harms_nobody(tmp, caplog, method):
    """The client learns that it failed, the log why; the server goes on."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            assert (await ask(stream, request(method)))['error']['code'] == control.INTERNAL_ERROR
            assert (await ask(stream, request('echo', [1])))['result'] == [1, 2]
    in_trio(test)
    assert [r.levelno for r in caplog.records if r.name == 'ctxfs.edge.control'] == [logging.ERROR]


def test_notifications_are_never_answered(tmp):
    """Not even when they fail: the next answer is the next request's."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            for method in ('echo', 'missing', 'nothing'):
                await stream.send_all(json.dumps({'jsonrpc': '2.0', 'method': method, 'params': []}).encode() + b'\n')
            assert (await ask(stream, request('echo', [1], 77)))['id'] == 77
    in_trio(test)


def test_an_async_generator_streams(tmp):
    """Each value is a notification, the end is the result."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            await stream.send_all(json.dumps(request('count', [3], 9)).encode() + b'\n')
            lines = b''
            while lines.count(b'\n') < 4:
                lines += await stream.receive_some(1 << 16)
        *values, end = [json.loads(line) for line in lines.splitlines()]
        assert [v['params'] for v in values] == [{'id': 9, 'value': i} for i in range(3)]
        assert all(v['method'] == 'count' and 'id' not in v for v in values)
        assert end == {'jsonrpc': '2.0', 'id': 9, 'result': None}
    in_trio(test)


def test_a_slow_request_does_not_hold_back_the_next(tmp):
    """Answers come as they are ready, on one connection too."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as stream:
            await stream.send_all(json.dumps(request('slow', ident=1)).encode() + b'\n')
            assert (await ask(stream, request('echo', [1], 2)))['id'] == 2
            methods.gate.set()
            assert await read_line(stream) == {'jsonrpc': '2.0', 'id': 1, 'result': 'done'}
    in_trio(test)


def test_a_client_may_close_its_sending_side(tmp):
    """As `socat` does at the end of its input: the answer still arrives."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as stream:
            await stream.send_all(json.dumps(request('slow')).encode() + b'\n')
            await stream.send_eof()
            while not methods.running:
                await trio.lowlevel.checkpoint()
            methods.gate.set()
            assert (await read_line(stream))['result'] == 'done'
    in_trio(test)


def test_what_a_vanished_client_asked_for_is_cancelled(tmp):
    """After the grace for half-closed connections."""
    async def test():
        async with served(tmp / 's') as methods:
            async with await connect(tmp / 's') as stream:
                await stream.send_all(json.dumps(request('slow')).encode() + b'\n')
                while not methods.running:
                    await trio.lowlevel.checkpoint()
            start = trio.current_time()
            await methods.cancelled.wait()
            assert control.GRACE <= trio.current_time() - start < 2 * control.GRACE
    in_trio(test, clock=jumping_clock())


def test_draining_waits_for_answers_and_not_for_ever(tmp):
    """What is under way is answered before a daemon ends; what takes too long is not waited for."""
    async def test():
        methods = Methods()
        async with trio.open_nursery() as nursery:
            server = await nursery.start(control.serve, str(tmp / 's'), methods.mapping())
            await server.drain(1000)        # nothing is under way
            async with await connect(tmp / 's') as stream:
                await stream.send_all(json.dumps(request('slow')).encode() + b'\n')
                while not methods.running:
                    await trio.lowlevel.checkpoint()
                start = trio.current_time()
                await server.drain(5)
                assert trio.current_time() - start == pytest.approx(5, abs=1)
                methods.gate.set()
                await server.drain(1000)
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert (await read_line(stream))['result'] == 'done'
    in_trio(test, clock=jumping_clock())


def test_an_endless_line_ends_its_client_only(tmp):
    """Memory for one request is bounded."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as other:
            async with await connect(tmp / 's') as stream:
                with pytest.raises(trio.BrokenResourceError):
                    for _ in range(1000):
                        await stream.send_all(b'x' * (1 << 16))
            assert (await ask(other, request('echo', [1])))['result'] == [1, 2]
    in_trio(test)


def test_a_client_that_reads_nothing_is_dropped(tmp):
    """It costs a bounded time and its own answers; others are served meanwhile."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stalled, await connect(tmp / 's') as other:
            await stalled.send_all(json.dumps(request('big')).encode() + b'\n')
            assert (await ask(other, request('echo', [1])))['result'] == [1, 2]
            await trio.sleep(2 * control.SEND_TIMEOUT)
            received = 0
            while data := await stalled.receive_some(1 << 20):      # what the kernel held, then the end
                received += len(data)
            assert received < 4 << 20
            assert (await ask(other, request('echo', [1])))['result'] == [1, 2]
    in_trio(test, clock=jumping_clock())


def test_a_flood_is_held_back(tmp):
    """No more requests of one client run at once than it has slots, and others are answered meanwhile."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as flood, await connect(tmp / 's') as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood.send_all, (json.dumps(request('slow')).encode() + b'\n') * 50_000)
                while methods.running < control.MAX_IN_FLIGHT:
                    await trio.sleep(0.001)
                for _ in range(20):
                    assert (await ask(other, request('echo', [1])))['result'] == [1, 2]
                assert methods.running == control.MAX_IN_FLIGHT
                nursery.cancel_scope.cancel()
    in_trio(test)


def test_one_client_cannot_take_the_loop(tmp):
    """Requests beyond a burst are paid for with time."""
    async def test():
        async with served(tmp / 's'), await connect(tmp / 's') as stream:
            start = trio.current_time()
            for _ in range(100):
                await ask(stream, request('echo', [1]))
            assert trio.current_time() - start > (100 - 2 * control.MAX_IN_FLIGHT) * control.REQUEST_INTERVAL
    in_trio(test)


async def publish_until(hub: EventHub, is_over, size: int) -> None:
    """Events with `size` bytes, far more than any client takes."""
    number = 0
    while not is_over():
        for _ in range(100):
            number += 1
            hub.publish('error', message='x' * size, logger=str(number))
        await trio.sleep(0.5)


def test_a_stalled_watcher_is_dropped(tmp):
    """Its memory is bounded while it stalls, it is gone after a bounded time, and another watcher hears everything."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as stalled, await connect(tmp / 's') as other:
            for stream in (stalled, other):
                await stream.send_all(json.dumps(request('watch')).encode() + b'\n')
            assert (await read_line(other))['params']['value'] == {'kind': 'watching'}
            while len(methods.events._listeners) < 2:
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                lines: list[bytes] = []
                nursery.start_soon(drain, other, lines)
                start = trio.current_time()
                await publish_until(methods.events, lambda: len(methods.events._listeners) < 2, 4096)
                assert trio.current_time() - start < 3 * control.SEND_TIMEOUT
                assert all(len(listener._events) <= events.QUEUE_EVENTS for listener in methods.events._listeners)
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            numbers = [int(json.loads(line)['params']['value']['logger']) for line in b''.join(lines).split(b'\n')[:-1]]
            assert numbers == sorted(numbers) and len(numbers) > events.QUEUE_EVENTS
    in_trio(test, clock=jumping_clock())


async def drain(stream, into: list[bytes]) -> None:
    while data := await stream.receive_some(1 << 20):
        into.append(data)


def test_a_slow_watcher_is_told_what_it_missed(tmp):
    """The events that it gets and those that it is told of are all that there were."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as stream:
            await stream.send_all(json.dumps(request('watch', {'kinds': ['error']})).encode() + b'\n')
            assert (await read_line(stream))['params']['value'] == {'kind': 'watching'}
            published = 3000
            for number in range(published):
                methods.events.publish('error', message='x' * 4096, logger=str(number))
            await methods.events.end(0)
            lines: list[bytes] = []
            while b'"result"' not in b''.join(lines[-2:]):
                lines.append(await stream.receive_some(1 << 20))
        *found, end = [json.loads(line) for line in b''.join(lines).split(b'\n') if line]
        values = [line['params']['value'] for line in found]
        assert len(values) + sum(value.get('dropped', 0) for value in values) == published
        assert len(values) < published and values[-1]['logger'] == str(published - 1)
        assert end == {'jsonrpc': '2.0', 'id': 1, 'result': None}
    in_trio(test)


def test_a_flood_of_watches_is_bounded(tmp):
    """One client runs at most its slots of them, and the hub has a bound of its own; questions of others are answered."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as flood, await connect(tmp / 's') as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood.send_all, (json.dumps(request('watch')).encode() + b'\n') * 10_000)
                nursery.start_soon(drain, flood, [])
                while len(methods.events._listeners) < control.MAX_IN_FLIGHT:
                    await trio.sleep(0.001)
                for _ in range(20):
                    methods.events.publish('paused')
                    assert (await ask(other, request('echo', [1])))['result'] == [1, 2]
                assert len(methods.events._listeners) == control.MAX_IN_FLIGHT
                nursery.cancel_scope.cancel()
            await flood.aclose()
            with trio.fail_after(2 * control.GRACE):
                while methods.events._listeners:
                    await trio.sleep(0.01)
    in_trio(test)


def test_the_sync_client_reads_a_stream(tmp):
    """Its values, its end, its errors, and the end of the daemon in between."""
    async def test():
        async with served(tmp / 's') as methods:
            def values() -> list[Any]:
                with ControlClient(tmp / 's') as client:
                    assert client.call('echo', a=1) == [1, 2]
                    assert list(client.stream('count', to=3)) == [0, 1, 2]
                    with pytest.raises(InvalidArgument):
                        next(client.stream('watch', kinds=['nothing']))
                    stream = client.stream('watch')
                    found = [next(stream)]
                    trio.from_thread.run_sync(methods.events.publish, 'paused')
                    found.append(next(stream))
                    trio.from_thread.run(methods.events.end, 0)
                    return [event['kind'] for event in (*found, *stream)]
            assert await trio.to_thread.run_sync(values) == ['watching', 'paused']
    in_trio(test)


def test_too_many_clients_are_told_so(tmp, monkeypatch):
    """Where all wait for their answers; and a place is free again when one goes."""
    monkeypatch.setattr(control, 'MAX_CLIENTS', 2)

    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as one:
            await one.send_all(json.dumps(request('slow')).encode() + b'\n')
            async with await connect(tmp / 's') as two:
                await two.send_all(json.dumps(request('slow')).encode() + b'\n')
                while methods.running < 2:
                    await trio.sleep(0.01)
                async with await connect(tmp / 's') as three:
                    assert (await read_line(three))['error']['code'] == control.BUSY
            while True:
                async with await connect(tmp / 's') as again:
                    if 'result' in await ask(again, request('echo', [1])):
                        return
    in_trio(test)


def test_an_idle_client_gives_its_place_back(tmp):
    """But not while a request of its own runs."""
    async def test():
        async with served(tmp / 's') as methods, await connect(tmp / 's') as stream:
            await stream.send_all(json.dumps(request('slow')).encode() + b'\n')
            await trio.sleep(4 * control.IDLE_TIMEOUT)
            methods.gate.set()
            assert (await read_line(stream))['result'] == 'done'
            assert await stream.receive_some(10) == b''
    in_trio(test, clock=jumping_clock())


@pytest.mark.needs_root
def test_another_user_is_refused(tmp, monkeypatch):
    """The kernel's word on who connects counts, also where the socket can be reached."""
    os.chmod(tmp, 0o755)
    script = ('import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setuid(54321); s.connect(sys.argv[1]); '
              'print(s.recv(4096).decode())')

    async def test():
        async with served(tmp / 's'):
            os.chmod(tmp / 's', 0o777)
            done = await trio.run_process([sys.executable, '-c', script, str(tmp / 's')], capture_stdout=True)
            assert json.loads(done.stdout)['error']['message'] == 'user 54321 may not control this mount'
    in_trio(test)


@pytest.mark.needs_root
def test_root_may_ask_the_daemon_of_another_user(tmp, monkeypatch):
    """It sees all there is anyway, and an administrator must be able to look and to unmount."""
    async def test():
        async with served(tmp / 's'):
            monkeypatch.setattr(os, 'geteuid', lambda: 54321)
            async with await connect(tmp / 's') as stream:
                await stream.send_all(json.dumps(request('echo', [1])).encode() + b'\n')
                assert (await read_line(stream))['result'] == [1, 2]
    in_trio(test)


def test_the_socket_is_private_and_goes_away(tmp):
    """0600 from its first moment, one name while it serves, none after; a dead daemon's is replaced."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp / 's'))

    async def test():
        async with served(tmp / 's'):
            assert stat.S_IMODE((tmp / 's').stat().st_mode) == 0o600
            assert [p.name for p in tmp.iterdir()] == ['s']
    in_trio(test)
    assert list(tmp.iterdir()) == []


def test_the_sync_client(tmp):
    """Values, errors by their class, time, and a daemon that goes away; at a path that no socket address can hold."""
    deep = tmp / ('d' * 100) / ('e' * 100)
    deep.mkdir(parents=True)

    def use():
        with ControlClient(deep / 's') as client:
            assert client.call('echo', a='ü') == ['ü', 2]
            with pytest.raises(NotFound, match='no such file: x'):
                client.call('missing')
            with pytest.raises(CtxfsError, match='no method'):
                client.call('nothing')
            client.send('slow')
            with pytest.raises(NoAnswer):
                client.receive(0.1)
            trio.from_thread.run_sync(methods_box[0].gate.set)
            assert client.receive(10) == 'done'
            client.send('count', to=3)
            assert client.receive(10) is None
        gone = ControlClient(deep / 's')
        trio.from_thread.run_sync(nursery_box[0].cancel_scope.cancel)
        with gone, pytest.raises(DaemonGone):
            gone.call('slow', timeout=None)

    methods_box, nursery_box = [], []

    async def test():
        methods_box.append(Methods())
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                nursery_box.append(nursery)
                await nursery.start(control.serve, str(deep / 's'), methods_box[0].mapping())
                outer.start_soon(trio.to_thread.run_sync, use)
    in_trio(test)
    with pytest.raises(DaemonGone):
        ControlClient(deep / 's')
