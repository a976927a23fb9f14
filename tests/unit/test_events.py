"""Events of a mount: who hears what, what a slow listener loses, and what the log and the tasks tell by themselves."""
from __future__ import annotations

import logging
import threading

import pytest
import trio
import trio.testing

from ctxfs.edge.mount_events import Narrator, log_published
from ctxfs.errors import InvalidArgument, RemoteUnavailable
from ctxfs.storage.tally import Tally
from ctxfs.sync import events
from ctxfs.sync.events import EventHub
from ctxfs.sync.tasks import HISTORY, TaskLog


def run(test, *, clock=None):
    async def bounded():
        with trio.fail_after(1000 if clock else 20):
            await test()
    trio.run(bounded, clock=clock)


def test_a_listener_hears_its_kinds_from_now_on():
    """With the time and the kind first, in order; what was before it, and what it did not ask for, is not there."""
    async def test():
        hub = EventHub(clock=lambda: 12.34567)
        hub.publish('paused')
        some, every = hub.subscribe(['pending']), hub.subscribe()
        hub.publish('resumed')
        hub.publish('pending', files=1, bytes=2)
        assert await some.next() == {'kind': 'pending', 'time': 12.346, 'files': 1, 'bytes': 2}
        assert [(await every.next())['kind'] for _ in range(2)] == ['resumed', 'pending']
    run(test)


def test_a_waiting_listener_is_woken():
    """Also one that waits already."""
    async def test():
        hub = EventHub()
        listener, heard = hub.subscribe(), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _take(listener, heard, 2))
            await trio.testing.wait_all_tasks_blocked()
            hub.publish('paused')
            await trio.testing.wait_all_tasks_blocked()
            assert [event['kind'] for event in heard] == ['paused']
            hub.publish('resumed')
        assert [event['kind'] for event in heard] == ['paused', 'resumed']
    run(test)


async def _take(listener, heard, count):
    for _ in range(count):
        heard.append(await listener.next())


def test_a_slow_listener_loses_the_oldest_and_is_told(monkeypatch):
    """How many, with the first event after the gap, once; nobody else loses anything."""
    monkeypatch.setattr(events, 'QUEUE_EVENTS', 3)

    async def test():
        hub = EventHub()
        slow, quick, taken = hub.subscribe(), hub.subscribe(), []
        for number in range(10):
            hub.publish('pending', files=number, bytes=0)
            taken.append(await quick.next())
        got = [await slow.next() for _ in range(3)]
        assert [event['files'] for event in got] == [7, 8, 9]
        assert [event.get('dropped') for event in got] == [7, None, None]
        assert [event['files'] for event in taken] == list(range(10)) and not any('dropped' in event for event in taken)
    run(test)


@pytest.mark.parametrize('kinds', [['nothing'], ['pending', 'nothing'], 'pending'])
def test_kinds_that_there_are_not_are_refused(kinds):
    """A watch that would never say anything must not look like a quiet mount."""
    with pytest.raises(InvalidArgument):
        EventHub().subscribe(kinds)


def test_listeners_are_bounded(monkeypatch):
    """And whoever leaves makes room."""
    monkeypatch.setattr(events, 'MAX_LISTENERS', 2)

    async def test():
        hub = EventHub()
        first, _ = hub.subscribe(), hub.subscribe()
        with pytest.raises(RemoteUnavailable):
            hub.subscribe()
        hub.leave(first)
        hub.subscribe()
    run(test)


def test_the_end_waits_for_last_events_but_not_for_ever():
    """A listener that takes what it has is waited for; one that does not, for the timeout; a late one ends at once."""
    async def test():
        hub = EventHub()
        good, heard = hub.subscribe(), []
        hub.subscribe()
        hub.publish('paused')

        async def listen():
            while (event := await good.next()) is not None:
                heard.append(event['kind'])
            hub.leave(good)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            start = trio.current_time()
            await hub.end(5)
            assert heard == ['paused'] and trio.current_time() - start == pytest.approx(5)
        assert await hub.subscribe().next() is None
    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_tasks_tell_their_begin_and_end():
    """The end with how it ended; ended tasks are counted by type, and a running one never falls out of the history."""
    async def test():
        hub = EventHub()
        log = TaskLog(context_id='c', path='/m', publish=hub.publish)
        listener = hub.subscribe(['task-began', 'task-ended'])
        long = log.begin('download')
        for _ in range(HISTORY + 3):
            log.begin('upload').finish()
        long.finish('no space')
        assert (log.ended_of('upload'), log.ended_of('download'), log.ended) == (HISTORY + 3, 1, HISTORY + 4)
        assert len(log.to_list()) == HISTORY and long.to_dict() in log.to_list() and not log.running
        found = [await listener.next() for _ in range(2 * (HISTORY + 4))]
        assert (found[0]['kind'], found[0]['taskType'], found[0]['status']) == ('task-began', 'download', 'Running')
        assert (found[-1]['kind'], found[-1]['status'], found[-1]['errorMessage']) == ('task-ended', 'Failed', 'no space')
    run(test)


class Counts:
    """A tally that a test sets."""

    def __init__(self) -> None:
        self.value, self.asked = Tally(), 0

    async def read(self):
        self.asked += 1
        return self.value


def test_progress_and_pending_are_told_once_a_second_and_only_to_listeners():
    """A change is told, no change is not, and nothing is counted while nobody listens."""
    async def test():
        hub, counts = EventHub(), Counts()
        log = TaskLog(context_id='c', path='/m')
        task = log.begin('upload')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Narrator(hub, counts, log).run)
            await trio.sleep(100)
            assert counts.asked == 0
            listener = hub.subscribe(['pending', 'task-progress'])
            for number in range(1, 4):
                task.files_done, counts.value = number, Tally(files=10 - number)
                await trio.sleep(1)
            await trio.sleep(10)
            hub.leave(listener)
            asked = counts.asked
            await trio.sleep(100)
            assert counts.asked <= asked + 1
            nursery.cancel_scope.cancel()
        await hub.end(0)
        listener.end()
        heard = []
        while (event := await listener.next()) is not None:
            heard.append((event['kind'], event.get('filesDone', event.get('files'))))
        assert [done for kind, done in heard if kind == 'task-progress'] == [1, 2, 3]
        assert [files for kind, files in heard if kind == 'pending'] == [9, 8, 7]
    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_warnings_of_any_thread_are_events():
    """An operator should look at them; information is not one, and after the mount's end a late record is harmless."""
    logger = logging.getLogger('ctxfs.test')
    bridges = []

    async def test():
        hub = EventHub()
        listener = hub.subscribe(['error'])
        with log_published(hub):
            bridges.extend(logging.getLogger('ctxfs').handlers)
            logger.info('nothing')
            logger.warning('look at %s', 'this')
            thread = threading.Thread(target=logger.error, args=('and at this',))
            thread.start()
            thread.join()
            found = [await listener.next() for _ in range(2)]
        assert [(event['message'], event['logger']) for event in found] == [('look at this', 'ctxfs.test'), ('and at this', 'ctxfs.test')]
    run(test)
    for bridge in bridges:
        bridge.emit(logging.LogRecord('ctxfs', logging.ERROR, __file__, 1, 'late', (), None))
    assert not set(bridges) & set(logging.getLogger('ctxfs').handlers)
