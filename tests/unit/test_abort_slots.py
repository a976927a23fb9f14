"""Abort slots: set by one side, seen by the other, never shared by two uploads."""
from __future__ import annotations

import pytest

from ctxfs.sync.abort_slots import SLOT_COUNT, AbortFlags, AbortSlots


def test_an_abort_is_seen_through_the_other_mapping_and_a_new_holder_begins_clear() -> None:
    """What the daemon sets the worker sees; after the release the byte is 0 for the next."""
    slots = AbortSlots()
    flags = AbortFlags(slots.fd)
    slot = slots.acquire()
    assert not flags.is_set(slot.index)
    slot.abort()
    assert flags.is_set(slot.index) and slot.is_aborted
    slot.release()
    again = slots.acquire()
    assert again.index == slot.index and not flags.is_set(again.index)
    slot.abort()
    slot.release()
    assert not flags.is_set(again.index) and slots.in_use() == 1, 'a released slot has no say'
    flags.close()
    slots.close()


def test_a_byte_is_not_reused_while_a_request_still_holds_it() -> None:
    """A worker that has not answered yet keeps the byte from being given to another upload."""
    slots = AbortSlots()
    slot = slots.acquire()
    slots.hold(slot.index)
    slot.release()
    others = [slots.acquire() for _ in range(SLOT_COUNT - 1)]
    assert slot.index not in {other.index for other in others}
    with pytest.raises(RuntimeError):
        slots.acquire()
    slots.drop(slot.index)
    assert slots.acquire().index == slot.index
    slots.close()


def test_an_upload_without_a_slot_is_never_aborted() -> None:
    """NO_SLOT reads as clear."""
    slots = AbortSlots()
    flags = AbortFlags(slots.fd)
    assert not flags.is_set(-1)
    flags.close()
    slots.close()
