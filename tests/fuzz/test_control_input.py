"""The control socket under clients that send anything, and clients under a socket that answers anything: an error, never the end of a mount."""
from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.edge import control
from ctxfs.edge.client import ControlClient
from ctxfs.errors import CtxfsError
from tests.fuzz.tools import DEEP, MIB, fuzz, mutated, texts, values
from tests.unit.test_control import ask, connect, in_trio, read_line, served

METHODS = ['echo', 'missing', 'bug', 'unprintable', 'typed', 'nosuch', '__init__', 'mapping', '']
requests = st.fixed_dictionaries({}, optional={
    'jsonrpc': st.one_of(st.just('2.0'), values), 'id': values, 'method': st.one_of(st.sampled_from(METHODS), values),
    'params': st.one_of(values, st.lists(values, max_size=3),
                        st.dictionaries(st.sampled_from(['a', 'b', 'mode', 'number', 'names', 'self']), values))})
good = st.fixed_dictionaries({'jsonrpc': st.just('2.0'), 'id': values, 'method': st.sampled_from(METHODS)},
                             optional={'params': st.dictionaries(st.sampled_from(['a', 'b', 'mode', 'number', 'names']), values)})


def to_line(value: Any) -> bytes:
    return json.dumps(value).encode()


lines = st.one_of(requests.map(to_line), good.map(to_line), mutated(good.map(to_line)), st.binary(max_size=60), values.map(to_line)).map(
    lambda line: line.replace(b'\n', b' '))


@given(st.lists(lines, max_size=6))
@example([b'{"jsonrpc":"2.0","id":' + b'9' * 400 + b',"method":"echo","params":[1]}'])
@example([b'{"jsonrpc":"2.0","id":"\\ud800","method":"echo","params":[1]}'])
@example([b'{"jsonrpc":"2.0","id":1,"method":"echo","params":["\\ud800"]}'])
@example([b'{"jsonrpc":"2.0","id":1,"method":"\\udcff"}'])
@example([b'{"jsonrpc":"2.0","id":1,"method":"echo","params":[' + b'9' * 5000 + b']}'])
@example([b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"\\ud800":1}}'])
@fuzz
def test_whatever_a_client_sends_the_next_one_is_answered(some: list[bytes]) -> None:
    """Each line gets an answer in JSON, or none; no request ends the server."""
    async def scenario() -> None:
        path = Path(os.environ['TMPDIR']) / 'run' / f's{os.getpid()}'
        async with served(path):
            stream = await connect(path)
            async with stream:
                await stream.send_all(b'\n'.join([*some, b'']))
                await stream.send_eof()
                answered = b''
                with trio.fail_after(20):
                    while data := await stream.receive_some(MIB):
                        answered += data
            for line in answered.splitlines():
                answer = json.loads(line)
                assert answer['jsonrpc'] == '2.0' and ('result' in answer or 'method' in answer or answer['error']['code'] < 0)
            async with await connect(path) as stream:
                await stream.send_all(b'{"jsonrpc":"2.0","id":7,"method":"echo","params":[1]}\n')
                assert (await read_line(stream))['result'] == [1, 2]
    in_trio(scenario)


BOMBS = [*DEEP, b'"' + b'a' * (2 * MIB), b'[' * (MIB - 10),
         b'{"jsonrpc":"2.0","id":1,"method":"echo","params":[' + b'[' * 900_000 + b']' * 900_000 + b']}',
         b'9' * (MIB - 10), b'1e' + b'9' * 900_000, b'\n' * (8 * MIB), b' ' * (MIB - 1), b'\0' * (MIB - 1), b'\xff' * (MIB - 1)]


@pytest.mark.parametrize('number', range(len(BOMBS)))
def test_a_bomb_costs_its_client_only(number: int, tmp_path: Path) -> None:
    """Nesting, digits, blanks, a line without end: in bounded memory and time, and the next client is served."""
    async def scenario() -> None:
        async with served(tmp_path / 's'):
            began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with await connect(tmp_path / 's') as stream:
                with trio.move_on_after(20):
                    try:
                        await stream.send_all(BOMBS[number] + b'\n')
                        await stream.send_eof()
                        while await stream.receive_some(MIB):
                            pass
                    except trio.BrokenResourceError:
                        pass
            async with await connect(tmp_path / 's') as stream:
                await stream.send_all(b'{"jsonrpc":"2.0","id":7,"method":"echo","params":[1]}\n')
                assert (await read_line(stream))['result'] == [1, 2]
            assert time.process_time() - began < 15 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    in_trio(scenario)


def test_a_line_that_comes_byte_by_byte_costs_by_its_length(tmp_path: Path) -> None:
    """Half a line that is a megabyte already: each byte more must not cost another look at all of it."""
    async def scenario() -> None:
        async def cost(length: int) -> float:
            async with await connect(tmp_path / 's') as stream:
                await stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"echo","params":["' + b'a' * length)
                began = time.process_time()
                for _ in range(2_000):
                    await stream.send_all(b'a')
                    await trio.lowlevel.checkpoint()
                await stream.send_all(b'"]}\n')
                assert len((await read_line(stream))['result'][0]) == length + 2_000
                return time.process_time() - began
        async with served(tmp_path / 's'):
            assert await cost(MIB - 10_000) < 5 * await cost(0) + 0.5
    in_trio(scenario)


def test_clients_that_say_nothing_leave_room_for_one_that_does(tmp_path: Path) -> None:
    """As many as may be connected, all silent: the one that is silent for longest goes when another comes; one that waits for its answer stays."""
    async def scenario() -> None:
        async with served(tmp_path / 's') as methods:
            busy = await connect(tmp_path / 's')
            await busy.send_all(b'{"jsonrpc":"2.0","id":1,"method":"slow"}\n')
            while not methods.running:
                await trio.sleep(0.01)
            silent = []
            for _ in range(control.MAX_CLIENTS - 1):
                silent.append(await connect(tmp_path / 's'))
                assert 'result' in await ask(silent[-1], {'jsonrpc': '2.0', 'id': 1, 'method': 'echo', 'params': [1]})
            async with await connect(tmp_path / 's') as stream:
                assert (await ask(stream, {'jsonrpc': '2.0', 'id': 1, 'method': 'echo', 'params': [1]}))['result'] == [1, 2]
            assert await silent[0].receive_some(1) == b''
            methods.gate.set()
            assert (await read_line(busy))['result'] == 'done'
            for stream in (busy, *silent):
                await stream.aclose()
    in_trio(scenario)


# --- the other side --------------------------------------------------------------------------------------------------------------

def answering(path: Path, answer: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            try:
                connection.sendall(answer)
            except OSError:     # the client has had enough
                return
    thread = threading.Thread(target=serve)
    thread.start()
    return thread


kinds = st.fixed_dictionaries({'kind': st.one_of(texts, st.sampled_from(['NotFound', 'CtxfsError', '__doc__', 'annotations']))})
answers = st.one_of(values.map(to_line), st.binary(max_size=50), st.fixed_dictionaries({}, optional={
    'jsonrpc': values, 'id': values, 'result': values, 'method': values, 'params': values,
    'error': st.one_of(values, st.fixed_dictionaries({}, optional={'message': values, 'code': values, 'data': st.one_of(values, kinds)}))})
    .map(to_line))


@given(answers)
@example(b'[' * 100_000)
@example(b'\xff')
@example(b'{"method": 1, "params": 2}')
@fuzz
def test_whatever_a_daemon_answers_a_command_ends_with_a_line(answer: bytes) -> None:
    """A result, or an error of ctxfs."""
    for question in (lambda client: client.call('status', timeout=10), lambda client: list(client.stream('watch'))):
        path = Path(os.environ['TMPDIR']) / 'run' / f'd{os.getpid()}'
        path.unlink(missing_ok=True)
        thread = answering(path, answer.replace(b'\n', b' ') + b'\n')
        try:
            with ControlClient(path) as client:
                question(client)
        except CtxfsError as error:
            assert str(error)
        finally:
            thread.join()


def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than any mount could have to say."""
    from ctxfs.edge import client as module
    monkeypatch.setattr(module, 'MAX_ANSWER', 1 << 20)
    thread = answering(tmp_path / 'd', b'a' * (64 * MIB))
    with ControlClient(tmp_path / 'd') as client, pytest.raises(CtxfsError):
        client.call('status', timeout=20)
    thread.join()
