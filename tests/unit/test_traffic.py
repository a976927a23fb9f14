"""Bounds on bytes a second and counts of requests: their arithmetic on a clock of the test's own, and requests that are paced by them."""
from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from ctxfs.config import MountOptions
from ctxfs.errors import RemoteUnavailable, UsageError
from ctxfs.limits import Address, metrics_addr_of, rate_of, transfers_of
from ctxfs.storage import http_body, s3_http
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_http import Timeouts
from ctxfs.storage.s3_store import S3Store
from ctxfs.storage.traffic import BOUNDS, BUDGET_CELLS, Budget, Counters, Kind, Limits, Traffic, tallies
from ctxfs.sync.admission import Gate, Priority
from ctxfs.sync.traffic_board import TrafficBoard, traffic_of
from tests.fakes.s3_server import FakeS3, Fault

MIB = 1 << 20


class Clock:
    """Moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of sockets' patience, too."""
    made = Clock()
    fake = SimpleNamespace(monotonic=made, clock_gettime=lambda which: made.now, CLOCK_BOOTTIME=time.CLOCK_BOOTTIME)
    monkeypatch.setattr(http_body, 'time', fake)
    monkeypatch.setattr(s3_http, 'time', fake)
    return made


# --- arithmetic -----------------------------------------------------------------------------------------------------------------------------

def test_a_bound_holds_over_all_who_share_it() -> None:
    """Ten budgets of one memory, as ten workers have them, pass in a second what one may, and what was saved for a burst."""
    clock, cells = Clock(), [0.0] * BUDGET_CELLS
    budgets = [Budget(MIB, cells, clock=clock) for _ in range(10)]
    last = max(budget.take(MIB // 10)[1] for budget in budgets)
    assert last == pytest.approx(1.0 - Budget.BURST_SECONDS, rel=1e-4)


def test_time_that_nobody_used_is_not_saved() -> None:
    """An hour of silence allows a burst, not an hour's bytes."""
    clock = Clock()
    budget = Budget(MIB, clock=clock)
    clock.now += 3600
    assert budget.take(MIB)[1] == pytest.approx(1.0 - Budget.BURST_SECONDS)


def test_who_waits_for_bytes_is_not_kept_by_those_whom_nobody_waits_for() -> None:
    """A read waits for reads only, however much is queued; what it took the others wait for."""
    budget = Budget(MIB, clock=Clock())
    for _ in range(60):
        budget.take(MIB)
    assert budget.take(MIB, is_urgent=True)[1] == pytest.approx(1.0 - Budget.BURST_SECONDS)
    assert budget.take(MIB, is_urgent=True)[1] == pytest.approx(2.0 - Budget.BURST_SECONDS)
    assert budget.take(MIB)[1] == pytest.approx(63.0 - Budget.BURST_SECONDS)


def test_pieces_are_small_where_the_bound_is() -> None:
    """So that all who share it move on a few times a second."""
    assert [Budget(rate).piece for rate in (0, 16 << 10, MIB, 1 << 30)] == [256 << 10, 4 << 10, MIB // 10, 256 << 10]


def test_workers_share_bounds_and_have_counters_of_their_own() -> None:
    """Over real shared memory and another process: the daemon sees all counts, and both wait for each other's bytes."""
    board = TrafficBoard(2)
    try:
        limits = Limits(upload=MIB, download=0)
        first = traffic_of(board.fd, 0, limits)
        first.counters.note(Kind.PUT, seconds=0.02, sent=5, received=1, is_error=False)
        program = ('import sys; from ctxfs.sync.traffic_board import traffic_of; from ctxfs.storage.traffic import Kind, Limits\n'
                   f't = traffic_of({board.fd}, 1, Limits({MIB}, 0)); t.counters.note(Kind.PUT, seconds=9, sent=7, received=2, is_error=True)\n'
                   't.counters.note_retry(Kind.PUT); t.before_sending(3600 * 1048576, may_wait=False)')
        subprocess.run([sys.executable, '-c', program], check=True, pass_fds=[board.fd])
        found = board.tallies()[Kind.PUT]
        assert found[:6] == (2, 1, 1, 12, 3, pytest.approx(9.02)) and sum(found.buckets) == 2
        waited: list[float] = []
        second = traffic_of(board.fd, 0, limits)
        second._sleep = waited.append
        second.before_sending(1)
        assert 3000 < waited[0] <= 3600     # an hour's bytes of the other process go first
    finally:
        board.close()


def test_durations_are_counted_by_bounds() -> None:
    """Each in the first bucket that it fits into; what takes longer than all of them in one more."""
    cells = Counters()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 1e-6, 1e6):
        cells.note(Kind.GET, seconds=seconds, sent=0, received=0, is_error=False)
    found = tallies([cells._cells])[Kind.GET]
    assert (found.buckets[0], found.buckets[1], found.buckets[-1], len(found.buckets)) == (2, 1, 1, len(BOUNDS) + 1)


# --- requests -------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


def paced(clock: Clock, *, up: float = 0.0, down: float = 0.0) -> Traffic:
    return Traffic(upload=Budget(up, clock=clock), download=Budget(down, clock=clock), sleep=clock.sleep)


def test_bodies_keep_to_the_bound_without_running_into_timeouts(credentials: None, clock: Clock) -> None:
    """Two minutes for each direction, by a bound that a silent server would have ended after half a second."""
    with FakeS3() as fake:
        traffic = paced(clock, up=16 << 10, down=16 << 10)
        with contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, silence=0.5, traffic=traffic)) as client:
            body = bytes(2 * MIB)
            client.request('PUT', 'key', body=body)
            assert clock.slept == pytest.approx(128, rel=0.01)
            assert client.request('GET', 'key').body == body
            assert clock.slept == pytest.approx(256, rel=0.01)


def test_what_must_be_over_in_time_is_sent_at_once_and_paid_by_the_next(credentials: None, clock: Clock) -> None:
    """A turn to write ends whatever the bound is."""
    with FakeS3() as fake, contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, traffic=paced(clock, up=16 << 10))) as client:
        client.request('PUT', 'key', body=bytes(MIB), timeouts=Timeouts(ends_at=clock.now + 5))
        assert clock.slept == 0
        client.request('PUT', 'key', body=b'x')
        assert clock.slept == pytest.approx(64, rel=0.01)


def test_small_answers_wait_for_nobody(credentials: None, clock: Clock) -> None:
    """A listing beside a download that takes an hour."""
    with FakeS3() as fake:
        traffic = paced(clock, down=16 << 10)
        traffic._download.take(3600 * (16 << 10), is_urgent=True)
        with contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, traffic=traffic)) as client:
            client.request('GET', query={'list-type': '2', 'prefix': ''})
            assert clock.slept == 0


def test_requests_are_counted_by_kind_with_their_bytes_errors_and_retries(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server counts them; that there is no object is an answer, no error."""
    traffic = Traffic()
    with FakeS3() as fake, contextlib.closing(S3Store(fake.bucket, endpoint=fake.endpoint, traffic=traffic)) as store:
        store.capabilities()
        traffic.counters = Counters()
        store._client._traffic = store._client._pool._traffic = traffic
        before = len(fake.requests)
        store.put('a', b'12345')
        store.copy('a', 'b', source_etag=store.head('a').etag, size=5)
        with pytest.raises(Exception, match='404'):
            store.head('absent')
        store.get('a')
        store.list('')
        store.delete('a')
        store.delete_many([('b', None)])
        store.put_file('big', io.BytesIO(bytes(17 * MIB)), 17 * MIB)
        fake.fail_next('GET', Fault.UNAVAILABLE)
        store.get('big', 0, 10)
        fake.fail_next('PUT', Fault.DENY)
        with pytest.raises(Exception, match='AccessDenied'):
            store.put('a', b'')
        counted = tallies([traffic.counters._cells])
        assert sum(tally.requests for tally in counted.values()) == len(fake.requests) - before
    found = {kind.name: (tally.requests, tally.errors, tally.retries) for kind, tally in counted.items()}
    assert found == {'PUT': (2, 1, 0), 'COPY': (1, 0, 0), 'HEAD': (2, 0, 0), 'GET': (3, 1, 1), 'LIST': (1, 0, 0), 'DELETE': (2, 0, 0),
                     'PART': (3, 0, 0), 'MULTIPART': (2, 0, 0)}
    assert counted[Kind.PART].sent == 17 * MIB and counted[Kind.PUT].sent == 5 and counted[Kind.GET].received >= 15


def test_a_request_without_an_answer_is_an_error(credentials: None) -> None:
    """And what is sent again after a lost connection is one more, and a retry."""
    traffic = Traffic()
    with FakeS3() as fake, contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, traffic=traffic)) as client:
        client.request('PUT', 'key', body=b'x')
        fake.fail_next('GET', Fault.DROP)
        assert client.request('GET', 'key').body == b'x'
        fake.fail_next('PUT', Fault.DROP)
        with pytest.raises(RemoteUnavailable):
            client.request('PUT', 'key', body=b'y')
    counted = tallies([traffic.counters._cells])
    assert counted[Kind.GET][:3] == (2, 1, 1) and counted[Kind.PUT][:3] == (2, 1, 0)


# --- how many at once -----------------------------------------------------------------------------------------------------------------------

class Place:
    """A worker as the gate sees it."""

    def __init__(self) -> None:
        self.load = self.background = self.bulk = 0


def test_transfers_bounds_all_workers_together_and_no_reader() -> None:
    """Three at once over two workers, of whatever kind; programs that wait come on top."""
    async def main() -> None:
        gate, places = Gate(16, transfers=3), [Place(), Place()]
        gate.workers.extend(places)  # type: ignore[arg-type]
        admitted = []
        for priority in [Priority.BACKGROUND, Priority.BULK] * 5 + [Priority.INTERACTIVE] * 5:
            with trio.move_on_after(0):
                await gate.enter(priority)
                admitted.append(priority)
        assert admitted.count(Priority.INTERACTIVE) == 5 and len(admitted) == 8
        gate.leave(places[0], Priority.BACKGROUND)  # type: ignore[arg-type]
        await gate.enter(Priority.BULK)
    trio.run(main)


def test_a_batch_counts_by_how_many_files_it_has_under_way() -> None:
    """It waits until there is room for all of them; one that is heavier than the bound goes alone."""
    async def entered(gate: Gate, weight: int) -> bool:
        with trio.move_on_after(0):
            await gate.enter(Priority.BACKGROUND, weight)
            return True
        return False

    async def main() -> None:
        gate, place = Gate(16, transfers=4), Place()
        gate.workers.append(place)  # type: ignore[arg-type]
        assert await entered(gate, 2) and not await entered(gate, 3) and await entered(gate, 2) and not await entered(gate, 1)
        for _ in range(2):
            gate.leave(place, Priority.BACKGROUND, 2)  # type: ignore[arg-type]
        assert await entered(gate, 48) and not await entered(gate, 1)
    trio.run(main)


def test_light_requests_do_not_keep_a_heavy_one_waiting() -> None:
    """What comes later and is less urgent goes after it, however little it weighs; what a program waits for does not."""
    async def main() -> None:
        gate, place, order = Gate(16, transfers=4), Place(), []
        gate.workers.append(place)  # type: ignore[arg-type]
        await gate.enter(Priority.BULK)

        async def enter(priority: Priority, weight: int) -> None:
            await gate.enter(priority, weight)
            order.append(priority)
        async with trio.open_nursery() as nursery:
            for priority, weight in ((Priority.BACKGROUND, 4), (Priority.BULK, 1), (Priority.INTERACTIVE, 1)):
                nursery.start_soon(enter, priority, weight)
                await trio.testing.wait_all_tasks_blocked()
            assert order == [Priority.INTERACTIVE]
            gate.leave(place, Priority.BULK)  # type: ignore[arg-type]
            await trio.testing.wait_all_tasks_blocked()
            assert order == [Priority.INTERACTIVE, Priority.BACKGROUND]
            gate.leave(place, Priority.BACKGROUND, 4)  # type: ignore[arg-type]
    trio.run(main)


# --- what people write ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, rate', [('10M', 10 * MIB), ('512K', 512 << 10), ('10M/s', 10 * MIB), (1_000_000, 1e6), (None, 0)])
def test_rates(text: Any, rate: float) -> None:
    """As sizes are written elsewhere."""
    assert rate_of(text, '--max-upload-rate') == rate


@pytest.mark.parametrize('text', ['', 'fast', '0', '1K', '-5M', '10M/h'])
def test_wrong_rates_are_refused_in_one_line_with_the_option(text: str) -> None:
    """Also those that would stop everything."""
    with pytest.raises(UsageError, match=r'^--max-upload-rate ') as refused:
        rate_of(text, '--max-upload-rate')
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('text, address', [('9464', ('127.0.0.1', 9464)), (':9464', ('127.0.0.1', 9464)), ('0.0.0.0:80', ('0.0.0.0', 80)),
                                           ('[::1]:9464', ('::1', 9464)), ('metrics.local:9464', ('metrics.local', 9464))])
def test_addresses_of_metrics(text: str, address: tuple[str, int]) -> None:
    """A port alone is on the loopback interface."""
    assert metrics_addr_of(text) == address


@pytest.mark.parametrize('text', ['', 'x', 'host:', 'host:0', '70000', '1.2.3.4:1:2', '::1:9464', 'http://x:1', 'a b:1'])
def test_wrong_addresses_are_refused(text: str) -> None:
    """In one line that shows a right one."""
    with pytest.raises(UsageError, match='HOST:PORT'):
        metrics_addr_of(text)


def test_only_loopback_is_private() -> None:
    """Names but localhost may lead anywhere."""
    assert [Address(host, 1).is_loopback for host in ('127.0.0.1', '::1', 'localhost', '0.0.0.0', '::', 'example')] == [True] * 3 + [False] * 3


@pytest.mark.parametrize('number', [0, -1, 1000])
def test_wrong_numbers_of_transfers(number: int) -> None:
    """Nothing at once would be nothing at all."""
    with pytest.raises(UsageError, match='--transfers'):
        transfers_of(number)


def test_a_bounded_mount_has_the_patience_for_what_its_bound_takes() -> None:
    """At an unmount, parts that are under way take their time; without a bound nothing changes."""
    plain = dict.fromkeys(('context_id', 'context_name', 'mountpoint', 'store_url', 'state_dir', 'cache_dir', 'runtime_dir', 'log_file',
                           'host_id'), 'x')
    free, bounded = (MountOptions(**plain, cache_size=1, upload_rate=rate).final_seconds for rate in (0.0, float(MIB)))
    assert (free, bounded) == (120, 120 + 256)
