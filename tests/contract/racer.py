"""One of several processes that want the same thing of a store at the same moment: prints how many of its threads got it.

    python -m tests.contract.racer URL KEY ETAG|- THREADS       begins when a line arrives on its standard input
"""
from __future__ import annotations

import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ctxfs.errors import RemoteChanged, RemoteUnavailable
from ctxfs.storage.object_store import Condition, ObjectStore
from ctxfs.storage.stores import open_store

ATTEMPTS = 20


def wins(store: ObjectStore, key: str, number: int, condition: Condition) -> bool:
    """Whether this one's write was done. A server that is too busy with the others' (Ceph: 500) is asked again; that it did it all the same
    shows in the object."""
    for _ in range(ATTEMPTS):
        try:
            store.put(key, f'{number}'.encode() * 100, metadata={'racer': str(number)}, condition=condition)
        except RemoteChanged:
            return False
        except RemoteUnavailable:
            time.sleep(0.05)
            continue
        return True
    raise AssertionError('the server never answered')


def main(url: str, key: str, etag: str, threads: str) -> None:
    condition = Condition(absent=True) if etag == '-' else Condition(etag=etag)
    barrier = threading.Barrier(int(threads))
    with contextlib.closing(open_store(url)) as store, ThreadPoolExecutor(int(threads)) as pool:
        store.capabilities()
        print('ready', flush=True)
        sys.stdin.readline()

        def race(number: int) -> int:
            barrier.wait(30)
            return wins(store, key, number, condition)
        print(sum(pool.map(race, range(int(threads)))), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
