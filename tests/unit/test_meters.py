"""What the workers' meter counts: bytes once, failures, and a rate that forgets."""
from __future__ import annotations

import pytest

from ctxfs.records import Attrs
from ctxfs.sync.meters import WINDOW, TransferMeter
from ctxfs.sync.protocol import Fetch, FetchDone, Head, ItemFailure, PutDone, PutFile, PutItem, PutMany, PutManyDone

PUT = PutFile(key='k', path='/p', size=10, attrs=Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=0, atime_ns=0, ctime_ns=0), revision=1)
FETCH = Fetch(key='k', etag='e', size=10)


class Clock:
    now = 1000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_bytes_are_counted_once(clock):
    """What progress told is not told again by the result, and what was left out of an upload was not sent."""
    meter = TransferMeter(clock)
    meter.moved(PUT, 600)
    meter.ended(PUT, PutDone(etag='e', size=1000, sha256=''), noted=600)
    meter.ended(PUT, PutDone(etag='e', size=50, sha256='', is_skipped=True), noted=0)
    meter.ended(PUT, PutDone(etag='', size=50, sha256='', is_aborted=True), noted=0)
    meter.ended(FETCH, FetchDone(start=0, stop=1, fetched=70), noted=0)
    meter.ended(Head(keys=[]), [], noted=0)
    assert (meter.uploaded, meter.downloaded) == (1000, 70)


def test_operations_and_failures_are_counted_by_kind(clock):
    """Those that there were, and no other."""
    meter = TransferMeter(clock)
    for _ in range(3):
        meter.began(PUT)
    meter.failed(PUT)
    meter.began(FETCH)
    assert meter.to_dict() == {'operations': {'Fetch': {'calls': 1, 'failed': 0}, 'PutFile': {'calls': 3, 'failed': 1}},
                               'bytesUploaded': 0, 'bytesDownloaded': 0}


def test_a_batch_counts_as_the_uploads_that_it_is_made_of(clock):
    meter, batch = TransferMeter(clock), PutMany(files=[PUT, PUT, PUT, PUT], parallel=2)
    meter.began(batch)
    meter.ended(batch, PutManyDone(items=[PutItem(done=PutDone(etag='e', size=10, sha256='')), PutItem(done=PutDone(etag='e', size=7, sha256='')),
                                          PutItem(done=PutDone(etag='e', size=99, sha256='', is_skipped=True)),
                                          PutItem(failure=ItemFailure(key='k', name='Denied', message='no'))]), noted=0)
    assert meter.to_dict() == {'operations': {'PutFile': {'calls': 4, 'failed': 1}}, 'bytesUploaded': 17, 'bytesDownloaded': 0}
    meter.failed(batch)
    assert meter.to_dict()['operations'] == {'PutFile': {'calls': 4, 'failed': 5}}


def test_a_rate_is_of_the_last_seconds(clock):
    """Steady work shows its rate; after the window nothing is left of it; up and down are apart."""
    meter = TransferMeter(clock)
    for _ in range(20):
        meter.moved(PUT, 1000)
        clock.now += 1
    assert meter.rates() == {'uploadBytes': pytest.approx(1000, rel=0.25), 'downloadBytes': 0}
    clock.now += WINDOW
    assert meter.rates() == {'uploadBytes': 0, 'downloadBytes': 0}
    clock.now += 1000
    meter.moved(FETCH, 5000)
    assert meter.rates() == {'uploadBytes': 0, 'downloadBytes': 1000}


def test_a_young_meter_does_not_divide_by_seconds_that_have_not_passed(clock):
    """Two seconds after its begin the rate is of two seconds."""
    meter = TransferMeter(clock)
    clock.now += 2
    meter.moved(PUT, 2000)
    assert meter.rates()['uploadBytes'] == 1000
