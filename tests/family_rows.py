"""One row for each family: a tiny checkpoint, a published size, and the tests that show it works.

docs/families.py makes a page of it; tests/models/test_every_family.py runs what holds for all.
Rows of what else is read as one of these families are in `variant_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from helpers_checkpoints import (
    write_falcon_mamba,
    write_hf,
    write_hf_mamba2,
    write_llama,
    write_mamba,
    write_mamba2,
    write_mambabyte,
    write_mixcon,
    write_samba,
)

from longspan.models.checkpoint import Checkpoint
from longspan.models.config import CacheUse, ModelConfig, with_anchors
from longspan.models.families import (
    falcon_mamba,
    hf_mamba,
    hf_mamba2,
    llama,
    mamba,
    mamba2,
    mambabyte,
    mixcon_config,
    open_checkpoint,
    samba,
    samba_config,
)
from longspan.models.tensor_files import TensorFiles

EVERY = "tests/models/test_every_family.py"
EXPORTED = "tests/export/test_export_bundle.py::test_every_engine_agrees"
LAYER_NORM = (
    "tests/models/test_mambabyte.py::test_logits_equal_mamba_with_torchs_layer_norm[own head]"
)
BLOCKS = "tests/models/test_mamba_ssm_blocks.py::test_decoder_equals_the_equations"
GOLDEN = "tests/models/test_golden_logits.py::test_golden_logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A family or a variant of one, as tests and the page about families see it.

    Attributes:
        family: its name.
        variant: what tells it from the family's usual checkpoints; None for these.
        anchors: what `with_anchors` takes, where the checkpoint is read through anchors.
        write: writes a tiny checkpoint into a folder.
        published: the name of a published size.
        config: the layers of that size.
        state_bytes: bytes of its state in bfloat16 after so many tokens, from the paper's sizes.
        names: tests that the checkpoint's own names are read.
        one_pass: tests of the logits of one pass against a reference that is not longspan's.
        onnx: tests of ONNX Runtime against torch.
    """

    family: str
    write: Callable[[Path], object]
    published: str
    config: Callable[[], ModelConfig]
    state_bytes: Callable[[int], int]
    names: tuple[str, ...]
    one_pass: tuple[str, ...]
    onnx: tuple[str, ...]
    variant: str | None = None
    anchors: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """Its name in the ids of tests."""
        return self.variant or self.family

    def open(self, folder: Path) -> Checkpoint:
        """Write the tiny checkpoint into a folder, and open it."""
        self.write(folder)
        opened = open_checkpoint(folder)
        if self.anchors is None:
            return opened
        return replace(opened, config=with_anchors(opened.config, **self.anchors))

    def state_bytes_at(self, tokens: int) -> int:
        """Bytes of the published size's state in bfloat16 after `tokens` tokens, by its config."""
        config = self.config()
        entries = CacheUse.of(config).entries_after(tokens)
        assert entries is not None, "the size's config says where its anchors are"
        return sum(spec.nbytes for spec in config.state_layout("bfloat16", entries))

    def shown_by(self) -> dict[str, tuple[str, ...]]:
        """The tests that show each claim about the family, by claim."""
        return {
            "checkpoint names": self.names,
            "one pass = reference": self.one_pass,
            "chunks = one pass": (f"{EVERY}::test_chunks_equal_one_pass[{self.id}]",),
            "steps = one pass": (f"{EVERY}::test_steps_equal_one_pass[{self.id}]",),
            "ONNX = torch": self.onnx,
            "Triton = reference, on an H100": (
                f"{EVERY}::test_triton_equals_reference[{self.id}-cuda]",
            ),
            "state bytes": (
                f"{EVERY}::test_published_state_bytes[{self.id}]",
                f"{EVERY}::test_state_of_a_call[torch.bfloat16-{self.id}]",
            ),
        }


class NoTensors(TensorFiles):
    """Files without a tensor: lit_gpt's sizes are then the usual ones."""

    path = Path("nowhere")
    names = frozenset()

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def dtype(self, name: str) -> torch.dtype | None:
        raise KeyError(name)

    def read(self, name: str) -> torch.Tensor:
        raise KeyError(name)


def _sizes(
    model_config: Callable[[Mapping[str, Any], str], ModelConfig], **config: Any
) -> Callable[[], ModelConfig]:
    """The layers of a config, once they are asked for."""
    return lambda: model_config(config, "config.json")


def samba_size(*, n_layer: int, sizes: Mapping[str, int], **keys: Any) -> ModelConfig:
    """The layers of a model of lit_gpt with a window of 2,048."""
    config = {"n_layer": n_layer, "local_window": 2048, "tied": True, **sizes, **keys}
    values = samba_config.config_values(config, "config.json", NoTensors())
    return samba.model_config(values, NoTensors())


# arXiv 2406.07522, table 11: the models of 1.6 to 1.9 billion parameters.
SAMBA_2048 = {
    "n_embd": 2048, "intermediate_size": 8196, "n_head": 32, "n_query_groups": 4,
    "padded_vocab_size": 50304,
}  # fmt: skip


def window_bytes(*, heads: int, width: int) -> int:
    """A window's state in bfloat16: 2,047 keys and values of so many heads, and the position."""
    return 2 * 2 * 2047 * heads * width + 8


def mamba_bytes(channels: int) -> int:
    """Mamba's state with bfloat16 tails: 16 float32 states and 3 inputs a channel."""
    return channels * (4 * 16 + 2 * 3)


LLAMA_2_7B = _sizes(
    llama.model_config,
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32000,
    rms_norm_eps=1e-5,
)
ROWS = (
    Row(
        family="samba",
        write=write_samba,
        published="Samba 1.7B (arXiv 2406.07522)",
        config=lambda: samba_size(n_layer=24, sizes=SAMBA_2048, mb_per_layer=2),
        state_bytes=lambda tokens: 12 * (mamba_bytes(4096) + window_bytes(heads=4, width=64)),
        names=("tests/models/test_samba.py::test_decoder_equals_the_equations[samba]",),
        one_pass=("tests/models/test_samba.py::test_decoder_equals_the_equations[samba]",),
        onnx=(f"{EXPORTED}[samba-float32]", f"{EXPORTED}[samba-bfloat16]"),
    ),
    Row(
        family="hf_mamba",
        write=write_hf,
        published="state-spaces/mamba-2.8b-hf",
        state_bytes=lambda tokens: 64 * mamba_bytes(5120),
        config=_sizes(
            hf_mamba.model_config,
            model_type="mamba",
            hidden_size=2560,
            num_hidden_layers=64,
            vocab_size=50280,
        ),
        names=("tests/models/test_hf_mamba.py::test_logits_equal_transformers[usual]",),
        one_pass=(
            "tests/models/test_hf_mamba.py::test_logits_equal_transformers[usual]",
            f"{GOLDEN}[torch.float64-mamba]",
        ),
        onnx=(f"{EXPORTED}[hf_mamba-bfloat16]",),
    ),
    Row(
        family="falcon_mamba",
        write=write_falcon_mamba,
        published="tiiuae/falcon-mamba-7b",
        state_bytes=lambda tokens: 64 * mamba_bytes(8192),
        config=_sizes(
            falcon_mamba.model_config,
            model_type="falcon_mamba",
            hidden_size=4096,
            num_hidden_layers=64,
            vocab_size=65024,
            time_step_rank=256,
            tie_word_embeddings=False,
        ),
        names=("tests/models/test_falcon_mamba.py::test_logits_equal_transformers[{}]",),
        one_pass=(
            "tests/models/test_falcon_mamba.py::test_logits_equal_transformers[{}]",
            f"{GOLDEN}[torch.float64-falcon_mamba]",
        ),
        onnx=(f"{EXPORTED}[falcon_mamba-float32]",),
    ),
    Row(
        family="hf_mamba2",
        write=write_hf_mamba2,
        published="mistralai/Mamba-Codestral-7B-v0.1",
        state_bytes=lambda tokens: 64 * (4 * 128 * 64 * 128 + 2 * 3 * (8192 + 2 * 8 * 128)),
        config=_sizes(
            hf_mamba2.model_config,
            model_type="mamba2",
            hidden_size=4096,
            num_hidden_layers=64,
            vocab_size=32768,
        ),
        names=("tests/models/test_hf_mamba2.py::test_logits_equal_transformers[two groups]",),
        one_pass=(
            "tests/models/test_hf_mamba2.py::test_logits_equal_transformers[two groups]",
            f"{GOLDEN}[torch.float64-mamba2]",
        ),
        onnx=(f"{EXPORTED}[hf_mamba2-bfloat16]",),
    ),
    Row(
        family="llama",
        write=write_llama,
        published="meta-llama/Llama-2-7b-hf",
        # 32 layers: a key and a value of 32 heads of 128 a token, and the position.
        state_bytes=lambda tokens: 32 * (2 * 2 * 32 * 128 * tokens + 8),
        config=LLAMA_2_7B,
        names=("tests/models/test_llama.py::test_logits_equal_transformers[usual]",),
        one_pass=(
            "tests/models/test_llama.py::test_logits_equal_transformers[usual]",
            f"{GOLDEN}[torch.float64-llama]",
        ),
        onnx=(f"{EXPORTED}[llama-float32]", f"{EXPORTED}[llama-float16]"),
    ),
    Row(
        family="mixcon",
        write=write_mixcon,
        published="four blocks of width 4096 (docs/mixcon.md; no size is public)",
        # 24 Conbas of 64 heads with 64 states and outputs; 8 attentions, 8 keys and values of 128.
        state_bytes=lambda tokens: (
            24 * 4 * 64 * (64 * (1 + 1 + 64) + 64) + 8 * (2 * 2 * 8 * 128 * tokens + 8)
        ),
        config=_sizes(
            mixcon_config.model_config,
            model_type="mixcon",
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=256_000,
        ),
        names=("tests/models/test_mixcon.py::test_every_parameter_is_found",),
        one_pass=("tests/models/test_mixcon.py::test_decoder_equals_the_equations[usual]",),
        onnx=(f"{EXPORTED}[mixcon-float32]", f"{EXPORTED}[mixcon-float16]"),
    ),
    Row(
        family="mamba2",
        write=write_mamba2,
        published="state-spaces/mamba2-2.7b",
        state_bytes=lambda tokens: 64 * (4 * 80 * 64 * 128 + 2 * 3 * (5120 + 2 * 128)),
        config=_sizes(
            mamba2.model_config,
            d_model=2560,
            n_layer=64,
            vocab_size=50277,
            pad_vocab_size_multiple=16,
            ssm_cfg={"layer": "Mamba2"},
        ),
        names=("tests/models/test_mamba2_ssm.py::test_every_parameter_is_found",),
        one_pass=(
            "tests/models/test_mamba2_ssm.py::test_transformers_naming_gives_the_same_logits",
            f"{BLOCKS}[as mamba2attn is]",
        ),
        onnx=(f"{EXPORTED}[mamba2-float32]",),
    ),
    Row(
        family="mambabyte",
        write=write_mambabyte,
        published="JunxiongWang/MambaByte_PG19_972M",
        state_bytes=lambda tokens: 48 * mamba_bytes(3584),
        config=_sizes(mambabyte.model_config, d_model=1792, n_layer=48, vocab_size=256),
        names=(
            LAYER_NORM,
            "tests/models/test_mambabyte.py::test_the_training_classs_names",
        ),
        one_pass=(LAYER_NORM,),
        onnx=(f"{EXPORTED}[mambabyte-float32]", f"{EXPORTED}[mambabyte-bfloat16]"),
    ),
    Row(
        family="mamba",
        write=write_mamba,
        published="state-spaces/mamba-2.8b",
        state_bytes=lambda tokens: 64 * mamba_bytes(5120),
        config=_sizes(mamba.model_config, d_model=2560, n_layer=64, vocab_size=50277),
        names=("tests/models/test_mamba_ssm.py::test_every_parameter_is_found[bin]",),
        one_pass=(
            "tests/models/test_mamba_ssm.py::test_transformers_naming_gives_the_same_logits",
            f"{BLOCKS}[an MLP after each Mamba]",
        ),
        onnx=(f"{EXPORTED}[mamba-float16]",),
    ),
)
