"""The device: dense passes first, generation for one pass at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from service.engine.device_lock import DeviceLock

PATIENCE_S = 10


def in_thread(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_dense_pass_waits_for_one_pass_of_generation_and_then_goes_first() -> None:
    device, order, generating = DeviceLock(), [], threading.Event()

    def write() -> None:
        for number in range(3):
            with device.turn():
                generating.set()
                time.sleep(0.05)
                order.append(f"step {number}")

    def encode() -> None:
        with device.dense():
            order.append("dense")

    writer = in_thread(write)
    assert generating.wait(PATIENCE_S)
    dense = in_thread(encode)
    for thread in (writer, dense):
        thread.join(PATIENCE_S)
    assert order == ["step 0", "dense", "step 1", "step 2"]


def test_dense_passes_do_not_exclude_each_other() -> None:
    device, both = DeviceLock(), threading.Barrier(2, timeout=PATIENCE_S)

    def encode() -> None:
        with device.dense():
            both.wait()

    threads = [in_thread(encode) for _ in range(2)]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not both.broken


def test_generation_does_not_begin_while_a_dense_request_waits_and_can_give_up() -> None:
    device, waiting = DeviceLock(), [1]

    def queue() -> int:
        return waiting[0]

    device.watch(queue)
    started = threading.Event()
    writer = in_thread(lambda: device.turn().__enter__() or started.set())
    assert not started.wait(0.05)

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError), device.turn(give_up):
        pass
    waiting[0] = 0
    writer.join(PATIENCE_S)
    assert started.is_set(), "an empty queue is noticed although nobody told"
