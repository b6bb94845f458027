"""Rows of what is read as one of the families: Samba's comparisons, and Llama through anchors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from family_rows import (
    LLAMA_2_7B,
    SAMBA_2048,
    Row,
    mamba_bytes,
    samba_size,
    window_bytes,
)
from helpers_checkpoints import SAMBA_VARIANTS, VOCABULARY, write_llama, write_samba

from longspan.models.config import with_anchors

EQUATIONS = "tests/models/test_samba.py::test_decoder_equals_the_equations"
EXPORTED = "tests/export/test_export_samba_variants.py"
SHAPES = "tests/models/test_samba_variants.py::test_a_published_variant_is_known_by_its_shapes"
ATTENTION = "tests/models/test_samba_variants.py::test_attention_alone_needs_a_config"
OPTIONS = "tests/export/test_anchor_options.py"
MASKED = (
    "tests/models/test_anchor_layers.py::"
    "test_dropping_while_reading_equals_one_masked_pass_of_transformers"
)
# arXiv 2406.07522v1, table 3: the models of 1.2 to 1.4 billion parameters.
SAMBA_2304 = {
    "n_embd": 2304, "intermediate_size": 6144, "n_head": 18, "n_query_groups": 18,
    "padded_vocab_size": 32000,
}  # fmt: skip
WINDOW_2304 = window_bytes(heads=18, width=128)
WINDOW_2048 = window_bytes(heads=4, width=64)


def samba_variant(
    variant: str,
    published: str,
    *,
    n_layer: int,
    sizes: dict[str, int],
    state_bytes: Callable[[int], int],
    onnx: str,
    names: str | None = None,
    **keys: Any,
) -> Row:
    """A model that Samba's paper compares it with; `keys` of the published one's config."""
    equations = f"{EQUATIONS}[{variant}]"
    return Row(
        family="samba",
        variant=variant,
        write=partial(write_samba, **SAMBA_VARIANTS[variant]),
        published=f"{published} (arXiv 2406.07522)",
        config=lambda: samba_size(n_layer=n_layer, sizes=sizes, **keys),
        state_bytes=state_bytes,
        names=(equations,) if names is None else (equations, names),
        one_pass=(equations,),
        onnx=(f"{EXPORTED}::{onnx}",),
    )


def anchor_variant(
    variant: str,
    published: str,
    *,
    every: int,
    anchors: dict[str, Any],
    names: str,
    masked: str,
    onnx: str,
) -> Row:
    """A Llama of Llama-2-7B's size whose segments end every so many tokens."""
    return Row(
        family="llama",
        variant=variant,
        write=write_llama,
        anchors=anchors,
        published=published,
        config=lambda: with_anchors(LLAMA_2_7B(), anchor_every=every),
        # A key and a value for each anchor but the last, and for all of the segment that it ends.
        state_bytes=lambda tokens: (
            32 * (2 * 2 * 32 * 128 * (tokens // every - 1 + every - 1) + 3 * 8)
        ),
        names=(f"{OPTIONS}::{names}",),
        one_pass=(f"{MASKED}[{masked}]",),
        onnx=(onnx,),
    )


VARIANTS = (
    samba_variant(
        "mamba-swa-mlp", "Mamba-SWA-MLP 1.6B",
        n_layer=18, sizes=SAMBA_2048, mamba_swa_mlp=True,
        state_bytes=lambda tokens: 18 * (mamba_bytes(4096) + WINDOW_2048),
        onnx="test_every_engine_agrees[mamba-swa-mlp-1]",
    ),
    samba_variant(
        "nope", "Samba-NoPE 1.3B",
        n_layer=18, sizes=SAMBA_2304, mb_per_layer=2, nope=True,
        state_bytes=lambda tokens: 9 * (mamba_bytes(4608) + WINDOW_2304),
        onnx="test_every_engine_agrees[nope-2]",
    ),
    samba_variant(
        "mlp2-swa-mlp", "MLP2-SWA-MLP 1.3B",
        n_layer=18, sizes=SAMBA_2304, mb_per_layer=2, abl_mamba=True,
        state_bytes=lambda tokens: 9 * WINDOW_2304,
        names=f"{SHAPES}[mlp2 1.3B]",
        onnx="test_every_engine_agrees[mlp2-swa-mlp-2]",
    ),
    samba_variant(
        "sliding gla", "Sliding GLA 1.2B",
        n_layer=18, sizes=SAMBA_2304, gla_per_layer=2,
        state_bytes=lambda tokens: 9 * (4 * 6 * 192 * 384 + WINDOW_2304),
        names=f"{SHAPES}[gla 1.2B]",
        onnx="test_a_bundle_of_linear_attention[sliding gla-float16]",
    ),
    samba_variant(
        "sliding retnet", "Sliding RetNet 1.4B",
        n_layer=18, sizes=SAMBA_2304, ret_per_layer=2,
        state_bytes=lambda tokens: 9 * (4 * 9 * 256 * 512 + 8 + WINDOW_2304),
        names=f"{SHAPES}[retnet 1.4B]",
        onnx="test_a_bundle_of_linear_attention[sliding retnet-bfloat16]",
    ),
    # Windows alone: Llama-2-SWA and Mistral of the paper.
    samba_variant(
        "swa", "Mistral 1.6B",
        n_layer=24, sizes=SAMBA_2048,
        state_bytes=lambda tokens: 24 * WINDOW_2048,
        names=f"{ATTENTION}[2048-window_attention]",
        onnx="test_every_engine_agrees[swa-1]",
    ),
    samba_variant(
        "attention to all", "Llama-3 1.6B",
        n_layer=24, sizes=SAMBA_2048, local_window=-1,
        state_bytes=lambda tokens: 24 * (2 * 2 * 4 * 64 * tokens + 8),
        names=f"{ATTENTION}[-1-full_attention]",
        onnx="test_every_engine_agrees[attention to all-1]",
    ),
    anchor_variant(
        "anchors ac", "AnLLM-AC-7B (arXiv 2402.07616) over sentences of 32 tokens",
        every=32,
        anchors={"anchor_ids": (VOCABULARY - 1,)},
        names="test_ac_is_the_token_of_that_name",
        masked="one id",
        onnx=f"{OPTIONS}::test_a_bundle_of_ac_reads_and_answers",
    ),
    anchor_variant(
        "anchors ep", "AnLLM-EP-7B (arXiv 2402.07616) over sentences of 32 tokens",
        every=32,
        anchors={"anchor_ids": (0, 1, 2)},
        names="test_ep_is_every_form_of_the_full_stop[stops2-ids2]",
        masked="three ids",
        onnx="tests/runtime/test_anchors.py::test_verification_reads_anchors[ids]",
    ),
    anchor_variant(
        "anchors every=N", "meta-llama/Llama-2-7b-hf with every=128",
        every=128,
        anchors={"anchor_every": 8},
        names="test_ids_and_intervals",
        masked="every 8",
        onnx="tests/runtime/test_anchors.py::test_verification_reads_anchors[every]",
    ),
)  # fmt: skip
