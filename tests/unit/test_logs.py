"""Log lines: their looks, a storm of them, and the alarm for changes that wait too long."""
from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from ctxfs import logs
from ctxfs.edge import stack_dump
from ctxfs.edge.lag_alarm import LagAlarm
from ctxfs.edge.metrics_text import Reading, render
from ctxfs.storage.tally import Failure, Tally


def record(text: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord('ctxfs.sync.engine', level, __file__, 1, text, args, None)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    made = logging.getLogger()
    handlers, level = made.handlers[:], made.level
    yield made
    made.handlers[:] = handlers
    made.setLevel(level)


def test_the_journal_gets_the_level_of_each_line() -> None:
    """A traceback's too."""
    formatter = logs.JournalFormatter()
    assert formatter.format(record('a\nb')) == '<4>ctxfs.sync.engine: a\n<4>b'
    assert [formatter.format(record('x', level=level))[:3] for level in (logging.DEBUG, logging.INFO, logging.ERROR, logging.CRITICAL)] == [
        '<7>', '<6>', '<3>', '<3>']


def test_json_is_one_object_a_line() -> None:
    """Whatever is in the message, with the traceback where there is one."""
    try:
        raise ValueError('no')
    except ValueError:
        found = record('a "%s"\n', 'b')
        found.exc_info = sys.exc_info()
    text = logs.JsonFormatter().format(found)
    value = json.loads(text)
    assert '\n' not in text and value['message'] == 'a "b"\n' and value['exception'].endswith('ValueError: no')
    assert (value['level'], value['logger'], value['pid']) == ('warning', 'ctxfs.sync.engine', os.getpid())
    assert value['time'].endswith('Z') and json.loads(logs.JsonFormatter().format(record('\udcff')))['message'] == '\\udcff'


def test_the_journal_is_known_by_its_stream() -> None:
    """systemd says which file stderr is where it leads to the journal; a stderr that was redirected since does not."""
    found = os.fstat(2)
    assert logs.style_of({'JOURNAL_STREAM': f'{found.st_dev}:{found.st_ino}'}, as_json=False) == 'journal'
    assert logs.style_of({'JOURNAL_STREAM': '1:1'}, as_json=False) == logs.style_of({}, as_json=False) == 'text'
    assert logs.style_of({'JOURNAL_STREAM': f'{found.st_dev}:{found.st_ino}'}, as_json=True) == 'json'


def test_a_storm_is_a_line_a_second(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> None:
    """What was left out is counted; other messages, and what one debugs with, come all the same."""
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(sys, 'stderr', out)
    logs.set_up('DEBUG', 'text', clock=lambda: now[0])
    log = logging.getLogger('ctxfs.storm')
    for _ in range(50):
        log.warning('the store is away')
        log.debug('asked')
        now[0] += 0.1
    log.warning('something else')
    lines = [line.split(' ctxfs.storm ')[1] for line in out.getvalue().splitlines()]
    assert lines.count('asked') == 50 and lines[-1] == 'something else'
    told = [line for line in lines if line.startswith('the store')]
    assert told[0] == 'the store is away' and 4 <= len(told) <= 6 and set(told[1:]) <= {
        'the store is away (9 more like this since the last one)', 'the store is away (10 more like this since the last one)'}


def test_messages_that_differ_in_their_values(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> None:
    """A hundred come at once, then one a second."""
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(sys, 'stderr', out)
    logs.set_up('INFO', 'journal', clock=lambda: now[0])
    log = logging.getLogger('ctxfs.storm')
    for number in range(5000):
        log.warning('no %d', number)
    now[0] += 1
    log.warning('no %d', 5000)
    lines = out.getvalue().splitlines()
    assert len(lines) == logs.BURST + 1 and lines[-1] == '<4>ctxfs.storm: no 5000 (4900 more like this since the last one)'


def test_the_level_changes_at_once(root: logging.Logger) -> None:
    logs.set_up('INFO', 'text')
    assert logs.level() == 'info' and logs.set_level('debug') == logging.DEBUG and logs.level() == 'debug'


def test_stacks_of_tasks() -> None:
    """Each task, indented below the one that waits for it, with where it waits."""
    async def sleeper() -> None:
        await trio.sleep_forever()

    async def main() -> list[str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper, name='the sleeper')
            await trio.testing.wait_all_tasks_blocked()
            lines = list(stack_dump.lines_of(trio.lowlevel.current_root_task()))
            nursery.cancel_scope.cancel()
        return lines
    lines = trio.run(main)
    at = next(i for i, line in enumerate(lines) if line.strip() == 'the sleeper')
    assert 'in sleeper: await trio.sleep_forever()' in lines[at + 1] and lines[0] == '<init>'


# --- the alarm ---------------------------------------------------------------------------------------------------------------------

class Counts:
    now = Tally()

    async def read(self) -> Tally:
        return self.now


class Period:
    def __init__(self, period: float | None) -> None:
        self.period = period


@pytest.mark.parametrize('given, period, limit', [
    (None, 60.0, 600), (None, 0.0, 600), (None, 300.0, 3000), (None, None, 0), (5.0, None, 5), (0.0, 60.0, 0)])
def test_when_a_change_waits_too_long(given: float | None, period: float | None, limit: float) -> None:
    """As said; else by the policy's period, and never where nothing is uploaded by a clock."""
    alarm = LagAlarm(Counts(), Period(period), given)   # type: ignore[arg-type]
    assert alarm.limit == limit
    assert alarm.state(limit + 1) == {'limit': limit, 'alarm': bool(limit)} and not alarm.state(limit)['alarm']


def test_the_alarm_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    """With the cause of the first upload that failed."""
    caplog.set_level('INFO')

    async def main() -> None:
        counts = Counts()
        alarm = LagAlarm(counts, Period(60.0), None)    # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarm.run)
            await trio.sleep(20)
            counts.now = Tally(files=2, oldest_ns=1, failed=(Failure('/a', 'access denied', 1, 0),))
            await trio.sleep(60)
            counts.now = Tally()
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    trio.run(main, clock=MockClock(autojump_threshold=0))
    first, last = (found.getMessage() for found in caplog.records)
    assert first.startswith('the oldest change has waited ') and first.endswith('(10 min is the limit), 2 files wait: access denied')
    assert last == 'no change waits too long for its upload any more'


# --- metrics -----------------------------------------------------------------------------------------------------------------------

def test_metrics_are_prometheus_text() -> None:
    """Each family once, with its type; labels are escaped; what is not known is left out; a dead mount is not up."""
    answers = {'status': {'pending': {'files': 2, 'bytes': 5}, 'lag': {'limit': 600, 'alarm': True}, 'readOnly': False, 'audit': None,
                          'remote': {'error': 'away', 'lastPoll': 1785489290.125}},
               'statistics': {'uptime': 1.5, 'operations': {'PutFile': {'calls': 3, 'failed': 1}}, 'cache': {'hits': 12}}}
    lines = list(render([Reading({'context': 'a"b\\c\n'}, answers), Reading({'context': 'dead'}, None)]))
    for line in ('ctxfs_up{context="a\\"b\\\\c\\n"} 1', 'ctxfs_up{context="dead"} 0', 'ctxfs_pending_files{context="a\\"b\\\\c\\n"} 2',
                 'ctxfs_lag_alarm{context="a\\"b\\\\c\\n"} 1', 'ctxfs_store_error{context="a\\"b\\\\c\\n"} 1',
                 'ctxfs_last_poll_timestamp_seconds{context="a\\"b\\\\c\\n"} 1785489290.125',
                 'ctxfs_operations_total{context="a\\"b\\\\c\\n",operation="PutFile"} 3', '# TYPE ctxfs_cache_hits_total counter'):
        assert line in lines
    assert not any('audit' in line or 'uploaded' in line for line in lines)
    helps = [line.split()[2] for line in lines if line.startswith('# HELP')]
    assert len(set(helps)) == len(helps) == sum(line.startswith('# TYPE') for line in lines)
    assert list(render([])) == []
