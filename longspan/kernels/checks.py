"""Checks that every op makes of its arguments, with one wording."""

from __future__ import annotations

import torch


def require_shape(op: str, name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise unless `tensor` has `shape`; ``None`` stands for any length.

    Raises:
        ValueError: the shape differs.
    """
    # While exporting, lengths may be symbols: comparing them would fix them in the graph.
    if torch.onnx.is_in_onnx_export():
        return
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(
        want is None or have == want for have, want in zip(found, shape, strict=True)
    )
    if not fits:
        rule = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{op}: {name} has shape {list(found)}; it must be [{rule}]")


def require_shapes(
    op: str, *expected: tuple[str, torch.Tensor | None, tuple[int | None, ...]]
) -> None:
    """Raise unless each tensor that is there has its shape: (name, tensor, shape).

    Raises:
        ValueError: a shape differs.
    """
    # Asking for it takes longer than comparing.
    if torch.onnx.is_in_onnx_export():
        return
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            require_shape(op, name, tensor, shape)


def require_dtype(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise unless `tensor` has `dtype`; float64 passes for float32, as tests use it.

    Raises:
        ValueError: the dtype differs.
    """
    if tensor.dtype != dtype and not (dtype == torch.float32 and tensor.dtype == torch.float64):
        raise ValueError(f"{op}: {name} has dtype {tensor.dtype}; it must be {dtype}")


def check_out(op: str, out: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise unless a result of this shape can be written to `out`: float32, contiguous.

    Raises:
        ValueError: it cannot.
    """
    require_shape(op, "out", out, shape)
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"{op}: out is of {out.dtype}, its strides are {list(out.stride())}; it must be "
            "contiguous float32"
        )
