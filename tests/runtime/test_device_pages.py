"""What is asked of CUDA's driver for pages and copies, by one that only writes it down."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from longspan.runtime import device_pages, nvidia
from longspan.runtime.device_pages import DevicePages

UNIT, BASE = 2**21, 2**40
TOTAL = 10 * UNIT + 5
IN_CONTEXT = ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"]
OUT_OF_CONTEXT = ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


class Driver:
    """libcuda, as far as it is called.

    Attributes:
        calls: names and plain numbers, but for those about the context.
        around: names of all calls since it was cleared.
        results: what a function gives; others give 0.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.around: list[str] = []
        self.results: dict[str, int] = {}
        self._handles = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.around.append(name)
            if name not in (*IN_CONTEXT, *OUT_OF_CONTEXT):
                self._answer(name, arguments)
                numbers = (getattr(each, "value", None) for each in arguments)
                self.calls.append((name, *(each for each in numbers if each is not None)))
            return self.results.get(name, 0)

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "cuMemGetAllocationGranularity":
            arguments[0]._obj.value = UNIT
        if name == "cuMemAddressReserve":
            arguments[0]._obj.value = BASE
        if name == "cuMemCreate":
            self._handles += 1
            arguments[0]._obj.value = self._handles


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver()
    monkeypatch.setattr(nvidia, "driver_and_device", lambda: (fake, ctypes.c_int(0)))
    monkeypatch.setattr(device_pages, "driver_and_device", lambda: (fake, ctypes.c_int(0)))
    monkeypatch.setattr(device_pages, "total_bytes", lambda device: TOTAL)
    return fake


def test_pages_are_mapped_one_behind_the_other_and_given_back_from_the_end(driver: Driver) -> None:
    pages = DevicePages()
    assert (pages.base, pages.unit) == (BASE, UNIT)
    assert driver.calls[-1] == ("cuMemAddressReserve", 10 * UNIT, 0, 0, 0)
    driver.calls.clear()
    assert pages.grow(3 * UNIT)
    assert pages.grow(UNIT)
    assert driver.calls == [
        ("cuMemCreate", 3 * UNIT, 0),
        ("cuMemMap", BASE, 3 * UNIT, 0, 1, 0),
        ("cuMemSetAccess", BASE, 3 * UNIT, 1),
        ("cuMemCreate", UNIT, 0),
        ("cuMemMap", BASE + 3 * UNIT, UNIT, 0, 2, 0),
        ("cuMemSetAccess", BASE + 3 * UNIT, UNIT, 1),
    ]
    driver.calls.clear()
    pages.shrink()
    assert driver.calls == [
        ("cuCtxSynchronize",), ("cuMemUnmap", BASE + 3 * UNIT, UNIT), ("cuMemRelease", 2),
    ]  # fmt: skip
    driver.calls.clear()
    pages.close()
    pages.close()
    assert driver.calls == [
        ("cuCtxSynchronize",),
        ("cuMemUnmap", BASE, 3 * UNIT),
        ("cuMemRelease", 1),
        ("cuMemAddressFree", BASE, 10 * UNIT),
    ]


def test_a_device_without_room_is_told_and_nothing_is_mapped(driver: Driver) -> None:
    pages = DevicePages()
    assert not pages.grow(11 * UNIT)
    driver.results["cuMemCreate"] = 2
    driver.calls.clear()
    assert not pages.grow(UNIT)
    assert [name for name, *_ in driver.calls] == ["cuMemCreate"]
    driver.results["cuMemCreate"] = 1
    with pytest.raises(RuntimeError, match="cuMemCreate failed with CUresult 1"):
        pages.grow(UNIT)


def test_a_copy_names_where_to_before_where_from(driver: Driver) -> None:
    nvidia.copy_to_host(5, 7, 9)
    nvidia.copy_to_device(5, 7, 9)
    assert driver.calls == [("cuMemcpyDtoH_v2", 7, 5, 9), ("cuMemcpyHtoD_v2", 7, 5, 9)]
    assert driver.around[:5] == [*IN_CONTEXT, "cuMemcpyDtoH_v2", *OUT_OF_CONTEXT]
    driver.results["cuMemcpyDtoH_v2"] = 700
    with pytest.raises(RuntimeError, match="cuMemcpyDtoH_v2 failed with CUresult 700"):
        nvidia.copy_to_host(5, 7, 9)
    assert driver.around[-2:] == OUT_OF_CONTEXT


def test_a_context_that_cannot_be_used_is_left_alone(driver: Driver) -> None:
    driver.results["cuCtxPushCurrent_v2"] = 201
    with pytest.raises(RuntimeError, match="CUresult 201"):
        nvidia.copy_to_host(5, 7, 9)
    assert driver.around == IN_CONTEXT
