"""A worker's threads: no more of them than work asks for, the one that rested last first, and gone after a rest."""
from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from ctxfs.sync.lifo_threads import LifoThreads
from tests.crash.watch import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What work in a test waits for; opened at its end, whatever happened."""
    event = threading.Event()
    yield event
    event.set()


def _all_rest(threads: LifoThreads) -> bool:
    return len(threads._resting) == len(threads)


def test_one_thing_after_the_other_is_done_by_one_thread_also_after_a_busy_moment(gate: threading.Event) -> None:
    threads = LifoThreads(5, 'test')
    busy = [threads.submit(lambda: gate.wait(10) and threading.get_ident()) for _ in range(5)]
    gate.set()
    assert len({future.result(10) for future in busy}) == 5
    eventually('all at rest', lambda: _all_rest(threads))
    seen = set()
    for _ in range(50):
        seen.add(threads.submit(threading.get_ident).result(10))
        eventually('all at rest', lambda: _all_rest(threads))
    assert len(seen) == 1
    threads.shutdown()
    assert len(threads) == 0


def test_what_is_too_much_waits_in_order(gate: threading.Event) -> None:
    threads = LifoThreads(1, 'test')
    done: list[int] = []
    threads.start(gate.wait, 10)
    for number in range(20):
        threads.start(done.append, number)
    assert len(threads) == 1
    gate.set()
    threads.shutdown()
    assert done == list(range(20))


def test_a_thread_at_rest_ends_and_lets_go_of_what_it_held() -> None:
    """As the cache's connections: in a `threading.local`, gone with the thread."""
    let_go = threading.Event()

    class Held:
        def __del__(self) -> None:
            let_go.set()
    local = threading.local()
    threads = LifoThreads(3, 'test', rest=0.05)
    threads.submit(lambda: setattr(local, 'held', Held())).result(10)
    assert let_go.wait(10)
    eventually('gone', lambda: len(threads) == 0)
    assert threads.submit(lambda: 7).result(10) == 7
    threads.shutdown()


def test_what_comes_as_a_thread_gives_up_its_rest_is_done() -> None:
    threads = LifoThreads(2, 'test', rest=0.0005)
    for number in range(500):
        assert threads.submit(lambda number=number: number).result(10) == number
        threading.Event().wait(0.0005)
    threads.shutdown()
    assert len(threads) == 0


def test_errors_reach_who_asked_or_the_log(caplog: pytest.LogCaptureFixture) -> None:
    threads = LifoThreads(1, 'test')
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(10)
    with caplog.at_level(logging.ERROR):
        threads.start(lambda: 1 // 0)
        assert threads.submit(lambda: 7).result(10) == 7
    assert 'work in a thread failed' in caplog.text
    threads.shutdown()


@pytest.mark.parametrize('cancel', [False, True])
def test_the_end_waits_for_what_was_begun(gate: threading.Event, cancel: bool) -> None:
    threads = LifoThreads(1, 'test')
    begun = threading.Event()
    first = threads.submit(lambda: begun.set() or gate.wait(10))
    assert begun.wait(10)
    second = threads.submit(lambda: 2)
    threads.shutdown(wait=False, cancel_futures=cancel)
    with pytest.raises(RuntimeError, match='told to end'):
        threads.submit(lambda: 3)
    gate.set()
    threads.shutdown()
    assert first.result(0) is True
    assert second.cancelled() is cancel
    assert cancel or second.result(0) == 2
