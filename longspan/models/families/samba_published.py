"""The published sizes of Samba and of the models that its paper compares it with.

A checkpoint without a config is recognised by its shapes. What shapes do not tell is taken as
published: heads, the window of 2,048, and rotated positions. The models of attention alone cannot
be told from those that attend to the whole text, so they need a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.tensor_files import TensorFiles

# What a block that does not attend mixes with: a tensor that block 0 then has, and its keys. Gated
# linear attention has retention's tensors, too, so its rows stand first in `PUBLISHED`.
_MIXERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mamba": ("attn.A_log", {"mb_per_layer": 2}),
    "mamba and attention": ("mb.A_log", {"mamba_swa_mlp": True}),
    "mlp": ("attn.swiglu.w1.weight", {"mb_per_layer": 2, "abl_mamba": True}),
    "gla": ("attn.gk_proj.0.weight", {"gla_per_layer": 2}),
    "retention": ("attn.g_proj.weight", {"ret_per_layer": 2}),
}
_SMALL, _LARGE = (1536, 4096, 12, 12, 32000), (2304, 6144, 18, 18, 32000)
# arXiv 2406.07522v1, tables 3 and 10; names and the number of blocks, half of the paper's N or a
# third, are those of lit_gpt.
PUBLISHED: Mapping[str, tuple[int, tuple[int, int, int, int, int], str]] = {
    "Samba_421M": (12, _SMALL, "mamba"),
    "Samba_1.3B": (18, _LARGE, "mamba"),
    "Samba_1.7B": (24, (2048, 8196, 32, 4, 50304), "mamba"),
    "Samba_3.8B": (32, (2816, 9984, 11, 1, 32064), "mamba"),
    "Mamba_SWA_MLP_400M": (8, _SMALL, "mamba and attention"),
    "Mamba_SWA_MLP_1.3B": (12, _LARGE, "mamba and attention"),
    "Samba_421M_abl_mamba": (12, _SMALL, "mlp"),
    "Samba_1.3B_abl_mamba": (18, _LARGE, "mlp"),
    "LLaMA_438M_SWA_gla": (12, _SMALL, "gla"),
    "LLaMA_1.2B_SWA_gla": (18, _LARGE, "gla"),
    "LLaMA_446M_SWA_ret": (12, _SMALL, "retention"),
    "LLaMA_1.4B_SWA_ret": (18, _LARGE, "retention"),
}
# The one of them that lit_gpt does not start as it starts a Mamba.
UNTIED = "LLaMA_438M_SWA_gla"
_SIZES = ("n_embd", "intermediate_size", "n_head", "n_query_groups", "padded_vocab_size")


def recognise(files: TensorFiles) -> dict[str, Any]:
    """The config of the published model whose shapes these are.

    Raises:
        BadCheckpoint: there is none.
    """
    for name, (n_layer, sizes, mixer) in PUBLISHED.items():
        width, d_ff, heads, groups, vocabulary = sizes
        probe, keys = _MIXERS[mixer]
        expected = {
            "transformer.wte.weight": (vocabulary, width),
            "transformer.h.0.mlp.swiglu.w1.weight": (d_ff, width),
            "transformer.h.1.attn.attn.weight": ((heads + 2 * groups) * (width // heads), width),
            f"transformer.h.{n_layer - 1}.norm_2.weight": (width,),
        }
        fits = all(n in files.names and files.shape(n) == s for n, s in expected.items())
        ends = f"transformer.h.{n_layer}.norm_2.weight" not in files.names
        if fits and ends and f"transformer.h.0.{probe}" in files.names:
            common = {"name": name, "n_layer": n_layer, "local_window": 2048}
            return {
                **common,
                **dict(zip(_SIZES, sizes, strict=True)),
                **keys,
                "tied": name != UNTIED,
            }
    raise BadCheckpoint(
        f"{files.path} was asked for as a samba checkpoint, has no config.json beside it, and its "
        f"shapes are none of the published sizes ({', '.join(PUBLISHED)}). Heads and window cannot "
        "be read from shapes. Put lit_gpt's Config beside it as config.json, or give "
        "config=FILE (--config)."
    )
