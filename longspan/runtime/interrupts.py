"""Ctrl-C that waits until something is done.

with interrupts_wait():
    logits, state = backend.forward(tokens, state, keep=[], donate=True)
# a KeyboardInterrupt comes here, when the next state is there
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold a first SIGINT back until the ``with`` block has ended; a second goes through at once.

    Signals come to the main thread alone, and only where Python handles them: elsewhere nothing
    changes.
    """
    handle = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handle):
        yield
        return
    waiting = False

    def hold_back(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        waiting = not waiting
        if not waiting:
            handle(number, frame)

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handle)
    if waiting:
        handle(signal.SIGINT, None)
