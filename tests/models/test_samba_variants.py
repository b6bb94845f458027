"""What Samba's paper compares it with: which block is what, published sizes, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from family_rows import NoTensors
from helpers_checkpoints import SAMBA_CONFIG, refusal, write_config, write_samba

from longspan.models.config import GlaConfig, MlpConfig
from longspan.models.families import open_checkpoint
from longspan.models.families.samba_blocks import blocks
from longspan.models.families.samba_config import config_values

Shapes = dict[str, tuple[int, ...]]
SIZES = {
    "n_layer": 6, "n_embd": 768, "n_head": 8, "intermediate_size": 8, "padded_vocab_size": 8,
    "local_window": 4,
}  # fmt: skip


KINDS = {"window_attention": "window", "full_attention": "all", "mlp": "mlp", "mamba": "mamba"}


def mixers_of(**keys: Any) -> str:
    """The mixers of six blocks, the MLP after each left out."""
    values = config_values(SIZES | keys, "config.json", NoTensors())
    names = []
    for block in blocks(values, NoTensors()):
        for mixer in block[: 1 if values["mamba"] else -1]:
            kind = mixer.config
            gated = isinstance(kind, GlaConfig) and kind.gate_rank is not None
            names.append(KINDS.get(kind.kind, "gla" if gated else "retention"))
    return " ".join(names)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"mb_per_layer": 2}, "mamba window mamba window mamba window"),
        ({"mb_per_layer": 1}, "mamba mamba mamba mamba mamba mamba"),
        ({"ret_per_layer": 2}, "retention window retention window retention window"),
        ({"gla_per_layer": 3}, "gla window window gla window window"),
        ({}, "window window window window window window"),
        ({"local_window": -1}, "all all all all all all"),
        # The first of Mamba, retention and gated linear attention takes a block that two ask for.
        (
            {"mb_per_layer": 4, "ret_per_layer": 3, "gla_per_layer": 2},
            "mamba window gla retention mamba window",
        ),
        # A list of attention blocks leaves the others to Mamba, and the periods say nothing.
        (
            {"attn_layer_pos": "[1,5]", "gla_per_layer": 2, "ret_per_layer": 2},
            "mamba window mamba mamba mamba window",
        ),
        ({"mb_per_layer": 2, "abl_mamba": True}, "mlp window mlp window mlp window"),
        ({"attn_layer_pos": "[5,]", "abl_mamba": True}, "mlp mlp mlp mlp mlp window"),
        ({"gla_per_layer": 6, "abl_mamba": True}, "gla window window window window window"),
        ({"n_layer": 2, "mamba_swa_mlp": True}, "mamba window mamba window"),
        ({"n_layer": 2, "mamba": True}, "mamba mamba"),
        # The last of every so many blocks, if it attends at all, attends to the whole text.
        ({"full_per_layer": 2}, "window all window all window all"),
        ({"mb_per_layer": 2, "full_per_layer": 4}, "mamba window mamba all mamba window"),
        ({"mb_per_layer": 2, "full_per_layer": 3}, "mamba window mamba window mamba all"),
        ({"n_layer": 2, "mamba_swa_mlp": True, "full_per_layer": 2}, "mamba window mamba all"),
    ],
    ids=str,
)
def test_which_block_is_what(keys: dict[str, Any], expected: str) -> None:
    assert mixers_of(**keys) == expected


def mlp_shapes(at: str, width: int, d_ff: int) -> Shapes:
    inner = {f"{at}swiglu.{name}.weight": (d_ff, width) for name in ("w1", "w2")}
    return {**inner, f"{at}swiglu.w3.weight": (width, d_ff)}


def linear_attention_shapes(at: str, width: int, keys: int, values: int, head: int) -> Shapes:
    rows = {"q": keys, "k": keys, "v": values, "g": values}
    shapes: Shapes = {f"{at}{name}_proj.weight": (count, width) for name, count in rows.items()}
    norm = {f"{at}g_norm_swish_gate.weight": (head,)}
    return {**shapes, **norm, f"{at}o_proj.weight": (width, values)}


def mixer_shapes(at: str, mixer: str, width: int, heads: int) -> Shapes:
    if mixer == "mlp":
        return mlp_shapes(at, width, 2 * width)
    if mixer == "retention":
        head = 2 * width // (heads // 2)
        return linear_attention_shapes(at, width, width, 2 * width, head)
    gates = {
        f"{at}gk_proj.0.weight": (16, width),
        f"{at}gk_proj.1.weight": (width // 2, 16),
        f"{at}gk_proj.1.bias": (width // 2,),
    }
    return {**linear_attention_shapes(at, width, width // 2, width, 384), **gates}


def published_shapes(mixer: str, n_layer: int, width: int, d_ff: int, heads: int) -> Shapes:
    shapes: Shapes = {
        "transformer.wte.weight": (32000, width),
        "transformer.ln_f.weight": (width,),
    }
    for i in range(n_layer):
        at = f"transformer.h.{i}."
        shapes |= {f"{at}norm_{k}.weight": (width,) for k in (1, 2)}
        shapes |= mlp_shapes(f"{at}mlp.", width, d_ff)
        if i % 2:
            attention = {"attn.attn.weight": (3 * width, width), "attn.proj.weight": (width, width)}
            shapes |= {at + name: shape for name, shape in attention.items()}
        else:
            shapes |= mixer_shapes(f"{at}attn.", mixer, width, heads)
    return shapes


SMALL, LARGE = (12, 1536, 4096, 12), (18, 2304, 6144, 18)


@pytest.mark.parametrize(
    ("mixer", "sizes", "parameters", "tied", "config"),
    [
        ("gla", SMALL, "438M", False, GlaConfig(n_heads=4, key_dim=192, value_dim=384)),
        ("gla", LARGE, "1.2B", True, GlaConfig(n_heads=6, key_dim=192, value_dim=384)),
        (
            "retention", SMALL, "446M", True,
            GlaConfig(n_heads=6, key_dim=256, value_dim=512, gate_rank=None, rope_base=10000.0),
        ),
        (
            "retention", LARGE, "1.4B", True,
            GlaConfig(n_heads=9, key_dim=256, value_dim=512, gate_rank=None, rope_base=10000.0),
        ),
        ("mlp", SMALL, "417M", True, MlpConfig(d_ff=3072)),
        ("mlp", LARGE, "1.3B", True, MlpConfig(d_ff=4608)),
    ],
    ids=["gla", "gla 1.2B", "retnet", "retnet 1.4B", "mlp2", "mlp2 1.3B"],
)  # fmt: skip
def test_a_published_variant_is_known_by_its_shapes(
    tmp_path: Path,
    mixer: str,
    sizes: tuple[int, int, int, int],
    parameters: str,
    tied: bool,
    config: GlaConfig | MlpConfig,
) -> None:
    """As many parameters as the paper's table 3 says."""
    shapes = published_shapes(mixer, *sizes)
    if not tied:
        shapes["lm_head.weight"] = shapes["transformer.wte.weight"]
    zero = torch.zeros(())
    model = {name: zero.expand(shape) for name, shape in shapes.items()}
    torch.save({"model": model}, tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.tied == tied
    assert checkpoint.config.layers[0] == config
    assert checkpoint.config.layers_by_kind() == (
        {"mlp": 3 * sizes[0] // 2, "window_attention": sizes[0] // 2}
        if mixer == "mlp"
        else {"gla": sizes[0] // 2, "mlp": sizes[0], "window_attention": sizes[0] // 2}
    )
    count = sum(math.prod(spec.shape) for spec in checkpoint.specs())
    in_words = f"{count / 1e6:.0f}M" if count < 1e9 else f"{count / 1e9:.1f}B"
    assert in_words == parameters


@pytest.mark.parametrize(("window", "kind"), [(2048, "window_attention"), (-1, "full_attention")])
def test_attention_alone_needs_a_config(tmp_path: Path, window: int, kind: str) -> None:
    """Shapes do not tell a window from the whole text: LLaMA_438M_SWA from LLaMA_438M."""
    zero = torch.zeros(())
    shapes = published_shapes("gla", 12, 1536, 4096, 12) | {"lm_head.weight": (32000, 1536)}
    model = {
        name.replace("h.1.", f"h.{i}."): zero.expand(shape)
        for i in range(12)
        for name, shape in shapes.items()
        if ".h." not in name or ".h.1." in name
    }
    torch.save({"model": model}, tmp_path / "model.pth")
    message = refusal(tmp_path)
    assert "its shapes are none of the published sizes (Samba_421M, " in message
    write_config(
        tmp_path,
        {
            "n_layer": 12, "n_head": 12, "n_embd": 1536,
            "intermediate_size": 4096, "vocab_size": 32000, "padding_multiple": 64,
            "local_window": window, "rotary_percentage": 1.0,
        },
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.layers_by_kind() == {kind: 12, "mlp": 12}
    assert sum(math.prod(spec.shape) for spec in checkpoint.specs()) // 10**6 == 438


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_that_retention_cannot_have(tmp_path: Path, heads: int) -> None:
    changes = {"mb_per_layer": -1, "ret_per_layer": 2}
    write_samba(tmp_path, **changes)
    more = {"n_head": heads, "n_query_groups": 1, "head_size": 4, "n_embd": 15}
    where = write_config(tmp_path, SAMBA_CONFIG | changes | more)
    assert refusal(tmp_path) == (
        f"{where} has n_embd = 15, n_head = {heads} and ret_per_layer = 2; retention has "
        "n_head // 2 heads, one or more, and rotates pairs of channels, so n_embd must be a "
        "multiple of twice that. Correct them."
    )


def test_a_gate_of_another_width_is_named(tmp_path: Path) -> None:
    weights = write_samba(tmp_path, mb_per_layer=-1, gla_per_layer=2)
    weights["transformer.h.0.attn.gk_proj.1.weight"] = torch.zeros(8, 5)
    torch.save({"model": weights}, tmp_path / "samba.pth")
    assert refusal(tmp_path) == (
        f"{tmp_path}/samba.pth has the tensor 'transformer.h.0.attn.gk_proj.1.weight' with shape "
        "[8, 5]; its config asks for [8, 3]. Check that config and weights belong together."
    )


def test_retention_in_place_of_the_gate_is_named(tmp_path: Path) -> None:
    """A config that says retention over gated weights: heads are half of attention's."""
    weights = write_samba(tmp_path, mb_per_layer=-1, gla_per_layer=2)
    write_config(tmp_path, SAMBA_CONFIG | {"mb_per_layer": -1, "ret_per_layer": 2})
    torch.save({"model": weights}, tmp_path / "samba.pth")
    assert refusal(tmp_path).startswith(
        f"{tmp_path}/samba.pth has the tensor 'transformer.h.0.attn.gk_proj.0.weight', which a "
        "samba checkpoint of this config does not have"
    )


def test_the_manifest_reads_back(tmp_path: Path) -> None:
    from longspan.models.config import ModelConfig

    write_samba(tmp_path, mb_per_layer=-1, gla_per_layer=2)
    config = open_checkpoint(tmp_path).config
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
