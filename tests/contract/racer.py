"""One of several processes that want the same thing of a store at the same moment: prints how many of its threads got it.

    python -m tests.contract.racer URL KEY ETAG|- THREADS       begins when a line arrives on its standard input
"""
from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ctxfs.errors import RemoteChanged
from ctxfs.storage.object_store import Condition
from ctxfs.storage.stores import open_store


def main(url: str, key: str, etag: str, threads: str) -> None:
    condition = Condition(absent=True) if etag == '-' else Condition(etag=etag)
    barrier = threading.Barrier(int(threads))
    with contextlib.closing(open_store(url)) as store, ThreadPoolExecutor(int(threads)) as pool:
        store.capabilities()
        print('ready', flush=True)
        sys.stdin.readline()

        def race(number: int) -> int:
            barrier.wait(30)
            try:
                store.put(key, f'{number}'.encode() * 100, metadata={'racer': str(number)}, condition=condition)
            except RemoteChanged:
                return 0
            return 1
        print(sum(pool.map(race, range(int(threads)))), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
