"""Keys and values in int8 under a plan: what they take, what stands against them, the choice.

held = held_in_int8(manifest, "torch-cuda")   # the manifest as the engine holds it, to plan with
plan = choose_caches("auto", manifest, "torch-cuda", planned)

A number takes one byte, and each row of a token and head a scale in the manifest's dtype. Memories
and `.span` files hold keys and values as the manifest says, whatever the engine keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from longspan.bundle import ChunkBytes, Manifest
from longspan.engines import Engine, device_of
from longspan.errors import BadInput
from longspan.models.config import HeadsConfig, WindowAttentionConfig
from longspan.runtime.backends.caches import FIXED_CACHES
from longspan.runtime.plan_result import Plan
from longspan.tensors import DTYPE_BYTES, CacheDType, DType

CacheChoice = Literal["auto"] | CacheDType
NO_KEYS = "no layer of the model keeps keys and values"
F32 = 4


def why_not_int8(manifest: Manifest, engine: Engine) -> str | None:
    """Why `engine` cannot keep the model's keys and values in int8; None where it can."""
    if engine.startswith("onnx"):
        return FIXED_CACHES
    return None if manifest.config.keeps_keys else NO_KEYS


def choose_caches(
    asked: CacheChoice | None,
    manifest: Manifest,
    engine: Engine,
    planned: Callable[[Manifest], Plan],
) -> Plan:
    """Plan with caches in the manifest's dtype or in int8.

    With "auto" int8 comes last, before a refusal: it is taken where no chunk and no capacity would
    do without it, and it does.

    Args:
        asked: "int8", "auto", or None for the manifest's dtype.
        manifest: of the bundle.
        engine: what computes.
        planned: makes a plan for a manifest.

    Raises:
        BadInput: int8 was asked for, and the engine or the model cannot have it.
    """
    against = why_not_int8(manifest, engine)
    if asked == "int8" and against is not None:
        raise BadInput(
            f"Keys and values in int8 were asked for with {engine}, and {against}. "
            + ("Choose --backend torch, or leave" if against == FIXED_CACHES else "Leave")
            + " --cache out."
        )
    if asked is None:
        return planned(manifest)
    plain = None if asked == "int8" else planned(manifest)
    if plain is not None and against is not None:
        return replace(plain, cache_reason=against)
    if plain is not None and plain.fits:
        return replace(plain, cache_reason=f"the budget holds them in {manifest.dtype}")
    narrow = replace(planned(held_in_int8(manifest, engine)), cache_dtype="int8")
    if plain is None:
        return replace(narrow, cache_reason="asked for")
    reason = f"in {manifest.dtype} they need a budget of {plain.smallest_budget_bytes:,} bytes"
    return replace(narrow, cache_reason=reason)


def held_in_int8(manifest: Manifest, engine: Engine) -> Manifest:
    """The manifest with the state, and with the bytes of a chunk, that `engine` then has.

    On CPUs the memory that is asked or saved lies beside the state, and stays in the manifest's
    dtype: of a state that does not grow two copies, of caches one (`longspan.runtime.plan_items`).
    """
    narrow = replace(manifest, state=manifest.config.state_layout(manifest.dtype, 0, "int8"))
    *layers, rest = manifest.chunk_bytes[engine]
    if device_of(engine) == "cpu":
        rest = replace(
            rest,
            fixed=rest.fixed + 2 * (manifest.state_bytes - narrow.state_bytes),
            per_entry=rest.per_entry + manifest.cache_entry_bytes - narrow.cache_entry_bytes,
        )
    wider = [
        _beside(spent, layer, engine, manifest.dtype) if isinstance(layer, HeadsConfig) else spent
        for spent, layer in zip(layers, manifest.config.layers, strict=True)
    ]
    return replace(narrow, chunk_bytes={**manifest.chunk_bytes, engine: (*wider, rest)})


def _beside(spent: ChunkBytes, layer: HeadsConfig, engine: Engine, dtype: DType) -> ChunkBytes:
    """A chunk of an attention layer with its new rows in int8, and with what queries read of them.

    The reference on CPUs widens the past's keys, then its values, before it joins them to the new.
    """
    rows, b = layer.n_kv_heads * layer.head_dim, DTYPE_BYTES[dtype]
    kept = 2 * (rows + layer.n_kv_heads * b)
    if device_of(engine) == "cuda":
        return replace(spent, per_token=spent.per_token + kept + 2 * rows * b)
    widened = F32 * rows
    spent = replace(spent, per_token=spent.per_token + kept + 2 * widened)
    if isinstance(layer, WindowAttentionConfig):
        return replace(spent, fixed=spent.fixed + (layer.window - 1) * widened)
    return replace(spent, per_entry=spent.per_entry + widened)
