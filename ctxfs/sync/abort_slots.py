"""One shared byte per upload in flight, by which the daemon tells a transfer worker that the file it reads is being changed; and when this
host's turn to write ends, which a worker must know at the instant of a write.

Owns the shared page (a memfd mapped by the daemon and every worker) and who holds which byte. It must not know files, uploads or pipes, nor
what a turn is for (turns.py).

INVARIANT: an upload whose byte is still 0 after the worker read the last byte of the file has read one whole state of that file.
The daemon sets the byte BEFORE it lets a write touch the staging file, and the worker looks at it AFTER its last read. Suppose some read
of the worker returned a byte of that write. Then the write's copy into the page cache came before that read, hence the daemon's store to
the slot, which precedes the write, came before the worker's look, which follows the read: the worker sees 1 and throws the attempt away.
So whoever sees 0 read nothing of any write that began after the upload started. A write that begins later is harmless: what goes out is
the older state, whole, and the writer's revision makes the file dirty again. A timestamp could not do this: st_mtime has the granularity
of a timer tick. Both processes pass a fence between the slot and the file, because only x86 orders plain stores and loads by itself.
"""
from __future__ import annotations

import mmap
import os
import struct
import threading
import time

#: bytes in the shared page; far above the number of uploads that all workers together can run
SLOT_COUNT = 4096
_CLEAR, _SET = 0, 1
#: the end of the turn follows the slots, on a boundary where the machine reads and writes it as one
_TURN = struct.Struct('=d')
_PAGE_BYTES = SLOT_COUNT + _TURN.size
_fence_lock = threading.Lock()


def _fence() -> None:
    """Order what came before against what comes after, also on ARM: a lock's release followed by an acquire is a full barrier there
    (store-release, then load-acquire), a single acquire and release is not."""
    with _fence_lock:
        pass
    with _fence_lock:
        pass


def boot_seconds() -> float:
    """A clock that all processes of this host share, and that goes on while the host sleeps (CLOCK_MONOTONIC does not)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AbortFlags:
    """The worker's view: it only looks."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, _PAGE_BYTES, prot=mmap.PROT_READ)

    def is_set(self, index: int) -> bool:
        """Whether the daemon changed its mind; to be asked after the last read. An index below 0 is never set."""
        _fence()
        return index >= 0 and self._page[index] != _CLEAR

    def turn_left(self) -> float:
        """Seconds for which this host still has its turn; 0 or less without one."""
        _fence()
        until: float = _TURN.unpack(self._page[SLOT_COUNT:_PAGE_BYTES])[0]
        return until - boot_seconds()

    def close(self) -> None:
        self._page.close()


class AbortSlot:
    """One upload's byte. Acquire it before the revision to upload is read, release it when the call has returned."""

    def __init__(self, slots: AbortSlots, index: int) -> None:
        self._slots = slots
        self.index = index
        self._is_released = False

    def abort(self) -> None:
        """Throw the attempt away; to be called before the first write. Cheap, idempotent, harmless after the release."""
        if not self._is_released:
            self._slots.set(self.index)

    @property
    def is_aborted(self) -> bool:
        return not self._is_released and self._slots.is_set(self.index)

    def release(self) -> None:
        """Give the byte back (idempotent). It is used again only after the worker has answered for it as well."""
        if not self._is_released:
            self._is_released = True
            self._slots.drop(self.index)

    def __enter__(self) -> AbortSlot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class AbortSlots:
    """The daemon's view: the page itself, and a count of holders for each byte (the upload's owner, and the request in flight)."""

    def __init__(self) -> None:
        self.fd = os.memfd_create('ctxfs-abort-slots', os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _PAGE_BYTES)
        self._page = mmap.mmap(self.fd, _PAGE_BYTES)
        self._free = list(range(SLOT_COUNT - 1, -1, -1))
        self._holders = [0] * SLOT_COUNT

    def acquire(self) -> AbortSlot:
        """A byte that is 0 and nobody else's. RuntimeError when all are taken: a caller that never releases."""
        if not self._free:
            raise RuntimeError(f'all {SLOT_COUNT} abort slots are taken')
        index = self._free.pop()
        self._page[index] = _CLEAR
        self._holders[index] = 1
        return AbortSlot(self, index)

    def set(self, index: int) -> None:
        """Abort the upload that holds `index`. After `close` there is no worker left that could look."""
        if not self._page.closed:
            self._page[index] = _SET
            _fence()

    def is_set(self, index: int) -> bool:
        return not self._page.closed and self._page[index] != _CLEAR

    def hold(self, index: int) -> None:
        """Keep the byte from being used again until a `drop`: a worker may still look at it."""
        self._holders[index] += 1

    def drop(self, index: int) -> None:
        self._holders[index] -= 1
        if self._holders[index] == 0:
            self._free.append(index)

    def set_turn(self, until: float) -> None:
        """This host's turn ends then (boot_seconds); 0: there is none."""
        if not self._page.closed:
            self._page[SLOT_COUNT:_PAGE_BYTES] = _TURN.pack(until)
            _fence()

    def in_use(self) -> int:
        return SLOT_COUNT - len(self._free)

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)
