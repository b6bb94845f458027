"""Pieces of a heap that grows at its end: none overlaps another, and all can be used again."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from host_pages import UNIT, HostPages
from hypothesis import given
from hypothesis import strategies as st

from longspan.runtime.device_heap import ALIGNMENT, DeviceHeap

ROOM = 64 * UNIT
SIZES = st.one_of(st.integers(0, 600), st.integers(0, 6 * UNIT))
# Take a piece, or free the one that is so far along among those that live.
EVENTS = st.lists(
    st.one_of(SIZES.map(lambda n: ("take", n)), st.integers().map(lambda i: ("free", i)))
)


def test_a_piece_is_aligned_and_the_same_again_once_free() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=None)
    first, second = heap.take(1), heap.take(UNIT)
    assert first is not None
    assert second is not None
    assert first % ALIGNMENT == second % ALIGNMENT == 0
    assert heap.used_bytes == ALIGNMENT + UNIT
    assert heap.held_bytes == 2 * UNIT
    heap.give_back(first)
    assert heap.take(ALIGNMENT) == first


def test_the_smallest_piece_that_holds_it_is_taken() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=None)
    pieces = [heap.take(size * ALIGNMENT) for size in (4, 1, 2, 1, 3, 1)]
    for i in (0, 2, 4):
        address = pieces[i]
        assert address is not None
        heap.give_back(address)
    assert heap.take(2 * ALIGNMENT) == pieces[2]
    assert heap.take(3 * ALIGNMENT) == pieces[4]


@given(EVENTS)
def test_no_piece_overlaps_another(events: list[tuple[str, int]]) -> None:
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=None)
    living: list[tuple[int, int]] = []
    for kind, number in events:
        if kind == "take":
            address = heap.take(number)
            if address is not None:
                living.append((address, number))
        elif living:
            heap.give_back(living.pop(number % len(living))[0])
        assert all(begin + size <= after for (begin, size), (after, _) in pairwise(sorted(living)))
        assert all(
            pages.base <= begin and begin + size <= pages.base + heap.held_bytes
            for begin, size in living
        )
        assert sum(size for _, size in living) <= heap.used_bytes <= heap.held_bytes
        assert heap.held_bytes == sum(pages.grown)
    for address, _ in living:
        heap.give_back(address)
    held = heap.held_bytes
    assert not held or heap.take(held) == pages.base, "all of it is one piece again"
    assert heap.held_bytes == held


def test_it_grows_by_no_more_than_is_missing_at_its_end() -> None:
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=None)
    assert heap.take(ALIGNMENT) is not None
    assert heap.take(2 * UNIT) is not None
    assert pages.grown == [UNIT, 2 * UNIT]
    assert heap.take(UNIT - ALIGNMENT) is not None
    assert heap.held_bytes == 3 * UNIT


def test_a_limit_is_met_and_can_be_set_anew() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=2 * UNIT)
    assert heap.take(2 * UNIT + 1) is None
    assert heap.held_bytes == heap.used_bytes == 0
    assert heap.take(2 * UNIT) is not None
    assert heap.take(1) is None
    heap.limit_bytes = 3 * UNIT
    assert heap.take(1) is not None


def test_a_device_without_room_is_a_limit_too() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=None)
    assert heap.take(ROOM + 1) is None
    assert heap.take(ROOM) is not None


def test_what_is_held_does_not_grow_when_it_is_used() -> None:
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=None)
    weights = heap.take(3 * UNIT)
    assert heap.hold(5 * UNIT)
    assert pages.grown == [3 * UNIT, 5 * UNIT]
    assert heap.used_bytes == 3 * UNIT
    assert heap.take(2 * UNIT) is not None
    assert heap.take(3 * UNIT) is not None
    assert pages.grown == [3 * UNIT, 5 * UNIT]
    assert not heap.hold(ROOM)
    assert weights == pages.base


def test_trimming_gives_back_what_no_piece_needs() -> None:
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=None)
    assert heap.take(UNIT) is not None
    kept, gone = heap.take(2 * UNIT), heap.take(UNIT)
    assert kept is not None
    assert gone is not None
    assert heap.hold(4 * UNIT)
    heap.trim()
    assert pages.grown == [UNIT, 2 * UNIT, UNIT]
    heap.give_back(gone)
    heap.trim()
    assert pages.grown == [UNIT, 2 * UNIT]
    heap.give_back(kept)
    heap.trim()
    assert pages.grown == [UNIT]
    assert heap.held_bytes == heap.used_bytes == UNIT
    assert heap.take(2 * UNIT) == kept


def test_it_is_closed_when_the_last_piece_is_free() -> None:
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=None)
    first, second = heap.take(1), heap.take(1)
    assert first is not None
    assert second is not None
    heap.give_back(first)
    heap.close()
    assert not pages.closed
    heap.give_back(second)
    assert pages.closed
    assert not heap.held_bytes
    assert heap.take(1) is None


def test_a_piece_may_be_given_back_while_the_heap_grows() -> None:
    """As the garbage collector may do it, in the same thread."""
    given_back: list[int] = []

    class Collecting(HostPages):
        def grow(self, size_bytes: int) -> bool:
            for address in given_back:
                heap.give_back(address)
            return super().grow(size_bytes)

    heap = DeviceHeap(Collecting(ROOM), limit_bytes=None)
    first, second = heap.take(UNIT), heap.take(UNIT)
    assert first is not None
    assert second is not None
    given_back.append(first)
    third = heap.take(2 * UNIT)
    assert third not in (None, first, second)
    assert heap.used_bytes == 3 * UNIT
    given_back.clear()
    assert heap.take(UNIT) == first


def test_threads_take_and_free_at_once() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=None)

    def work(size: int) -> None:
        for _ in range(300):
            addresses = [heap.take(size) for _ in range(4)]
            for address in addresses:
                assert address is not None
                heap.give_back(address)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (100, 700, UNIT, 300)))
    assert not heap.used_bytes
    heap.trim()
    assert not heap.held_bytes


def test_a_heap_that_was_never_used_is_closed_at_once() -> None:
    pages = HostPages(ROOM)
    DeviceHeap(pages, limit_bytes=None).close()
    assert pages.closed


def test_what_is_not_taken_cannot_be_given_back() -> None:
    heap = DeviceHeap(HostPages(ROOM), limit_bytes=None)
    with pytest.raises(KeyError):
        heap.give_back(1)


@pytest.mark.gpu
def test_pages_of_a_device() -> None:
    """What is written there is read again, and the process holds it only meanwhile."""
    import torch

    from longspan.runtime.device_memory import memory_now
    from longspan.runtime.device_pages import DevicePages
    from longspan.runtime.nvidia import copy_to_device, copy_to_host

    torch.ones(1, device="cuda")
    before = memory_now("cuda").bytes
    heap = DeviceHeap(DevicePages(), limit_bytes=None)
    small, large = heap.take(5), heap.take(2**28)
    assert small is not None
    assert large is not None
    assert memory_now("cuda").bytes - before == heap.held_bytes
    source, target = (ctypes.create_string_buffer(2**20) for _ in range(2))
    source.raw = bytes(range(256)) * 2**12
    copy_to_device(ctypes.addressof(source), large + 2**27, 2**20)
    copy_to_host(large + 2**27, ctypes.addressof(target), 2**20)
    assert source.raw == target.raw
    heap.give_back(large)
    heap.trim()
    assert heap.held_bytes < 2**28
    heap.close()
    heap.give_back(small)
    assert memory_now("cuda").bytes == before
