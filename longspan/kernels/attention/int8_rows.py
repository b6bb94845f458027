"""Keys and values as a cache may hold them: in a float dtype, or as int8 with a scale a row.

A row is the P numbers of one token and one head. With m = max |x|, rounded to the scale's dtype,
and the steps of a symmetric quantizer on both sides of zero (arXiv 1712.05877, equation 1, with
zero-point 0 and scale m / 127)

    values = round(127 x / m)           x' = (values / 127) m

so that no number of a row is off by more than m / 254. The scale is m, not m / 127: the largest
number of x' is then m itself, so a row that is written down in the scale's dtype and quantized
again has the same scale and the same values (but for subnormal ones of float16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from longspan.kernels.checks import require_dtype, require_shape

LEVELS = 127  # of int8 on each side of zero


class Int8Rows(NamedTuple):
    """Rows in int8.

    Attributes:
        values: int8 [B, M, G, P].
        scale: float [B, M, G], the largest magnitude of each row.
    """

    values: torch.Tensor
    scale: torch.Tensor


Rows = torch.Tensor | Int8Rows
SomeRows = TypeVar("SomeRows", bound=Rows)


def quantize_rows(x: torch.Tensor, scale_dtype: torch.dtype) -> Int8Rows:
    """The rows of x, float [B, M, G, P], in int8; a row of zeros has the scale 0.

    It is computed in float32 whatever the dtype of x: a number between two integers must go to the
    same one everywhere.
    """
    wide = x.float()
    scale = wide.abs().amax(-1).to(scale_dtype)
    steps = scale.float().masked_fill(scale == 0, 1).reciprocal() * LEVELS
    values = (wide * steps[..., None]).clamp_(-LEVELS, LEVELS).round_()
    return Int8Rows(values.to(torch.int8), scale)


def dequantize_rows(rows: Int8Rows, dtype: torch.dtype) -> torch.Tensor:
    """The numbers that the rows stand for, `dtype` [B, M, G, P]."""
    wide = rows.values.to(torch.promote_types(dtype, torch.float32))
    return wide.div_(LEVELS).mul_(rows.scale[..., None]).to(dtype)


def values_of(rows: Rows) -> torch.Tensor:
    """The tensor [B, M, G, P]: the rows themselves, or their values in int8."""
    return rows.values if isinstance(rows, Int8Rows) else rows


def tensors_of(*several: Rows) -> tuple[torch.Tensor, ...]:
    """Every tensor of the rows."""
    return tuple(
        tensor for rows in several for tensor in (rows if isinstance(rows, Int8Rows) else (rows,))
    )


def entries(rows: Rows, part: slice) -> Rows:
    """Some of the rows' entries, as views."""
    return joined(lambda tensor, _: tensor[:, part], rows, rows)


def kept_like(past: Rows, new: torch.Tensor) -> Rows:
    """New rows as a cache in int8 keeps them; as they are for a cache of a float dtype."""
    return quantize_rows(new, past.scale.dtype) if isinstance(past, Int8Rows) else new


def as_float(rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    """The rows in the dtype that attention computes in."""
    return dequantize_rows(rows, dtype) if isinstance(rows, Int8Rows) else rows.to(dtype)


def joined(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: Rows, b: Rows
) -> Rows:
    """What `function` makes of two caches' tensors, of values and of scales alike.

    Their first three axes are the same, so a function of the second one serves both.
    """
    if isinstance(a, Int8Rows) and isinstance(b, Int8Rows):
        return Int8Rows(function(a.values, b.values), function(a.scale, b.scale))
    return function(values_of(a), values_of(b))


def require_rows(op: str, past_k: Rows, past_v: Rows, shape: tuple[int | None, ...]) -> None:
    """Raise unless both caches have `shape`, and both or neither are in int8.

    Raises:
        ValueError: they have not, or int8 is to go into a graph.
    """
    for name, past in (("past_k", past_k), ("past_v", past_v)):
        if not isinstance(past, Int8Rows):
            require_shape(op, name, past, shape)
            continue
        require_shape(op, f"{name}.values", past.values, shape)
        require_shape(op, f"{name}.scale", past.scale, shape[:-1])
        require_dtype(op, f"{name}.values", past.values, torch.int8)
        if torch.onnx.is_in_onnx_export():
            raise ValueError(f"{op}: {name} is in int8; a graph keeps it in a float dtype")
    if isinstance(past_k, Int8Rows) != isinstance(past_v, Int8Rows):
        raise ValueError(
            f"{op}: past_k is {_described(past_k)} and past_v {_described(past_v)}; both or "
            "neither must be Int8Rows"
        )


def _described(rows: Rows) -> str:
    return "Int8Rows" if isinstance(rows, Int8Rows) else f"a tensor of {rows.dtype}"
