"""C functions of Python's that ONNX Runtime may call until the process has ended.

    freed = callback(ctypes.CFUNCTYPE(None, ctypes.c_void_p), heap.give_back)

What nobody closed is freed as the interpreter ends, in no order, and calls back when the modules
here are gone: a ctypes function that went with them is a jump into freed memory.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from typing import Any

# Holds something once the interpreter ends.
_ending: list[bool] = []
atexit.register(_ending.append, True)


def callback(kind: Any, function: Callable[..., Any]) -> Any:
    """`function` as a C function that is never freed, and does nothing once the interpreter ends.

    Args:
        kind: what `ctypes.CFUNCTYPE` gave.
        function: is called by any thread.
    """

    def call(*arguments: Any, ending: list[bool] = _ending) -> Any:
        # Modules' names may be gone: what is called here is this function's own.
        return None if ending else function(*arguments)

    made = kind(call)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made
