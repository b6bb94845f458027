"""Sizes of MegaByte (arXiv 2305.07185): parameters, FLOPs and state, beside MambaByte's.

The letters are the paper's: P bytes a patch, K patches of T bytes, D_G the width that a byte has in
the global transformer, D_L the width of the local one.

    PUBLISHED["758M+262M"].flops_per_byte()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longspan.models.checkpoint import empty_decoder
from longspan.models.config import MambaConfig, ModelConfig

VALUES = 256
MLP_RATIO = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One of the two transformers."""

    width: int
    layers: int
    heads: int

    @property
    def matrix_parameters(self) -> int:
        """Numbers in its matrices: four of D x D for attention, two of D x 4D for the MLP."""
        return self.layers * (4 + 2 * MLP_RATIO) * self.width**2

    @property
    def parameters(self) -> int:
        """All numbers: matrices, their biases, and the norms' weights and biases."""
        vectors = (5 + MLP_RATIO) * self.width + 4 * self.width
        return self.matrix_parameters + self.layers * vectors + 2 * self.width

    def attention_flops(self, keys: float) -> float:
        """FLOPs of scores and sums over `keys` keys, for one position, in all layers."""
        return self.layers * 4 * self.width * keys

    def cache_bytes(self, positions: int, number_bytes: int) -> int:
        """Bytes of keys and values of so many positions, in all layers."""
        return self.layers * 2 * positions * self.width * number_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of a MegaByte.

    Attributes:
        patch_bytes: P.
        context_bytes: T, the longest text; positions are learned.
        over_patches: the global transformer, of width P D_G.
        in_patch: the local transformer, of width D_L.
    """

    patch_bytes: int
    context_bytes: int
    over_patches: Stage
    in_patch: Stage

    @property
    def byte_width(self) -> int:
        """D_G, the width that a byte has in the global transformer."""
        return self.over_patches.width // self.patch_bytes

    @property
    def parameters(self) -> int:
        """Numbers of the whole model: both transformers, embeddings, paddings, w^GL."""
        D_G, D_L = self.byte_width, self.in_patch.width
        embeddings = (VALUES + self.context_bytes) * D_G + VALUES * D_L
        between = self.over_patches.width + D_L + D_G * D_L
        return self.over_patches.parameters + self.in_patch.parameters + embeddings + between

    def flops_per_byte(self) -> float:
        """FLOPs a byte of a text of T bytes: two a multiplication, causal attention, lookups free.

        The global transformer runs once a patch and sees (K + 1) / 2 patches on average, the local
        one runs once a byte and sees (P + 1) / 2 bytes.
        """
        P, K = self.patch_bytes, self.context_bytes // self.patch_bytes
        D_G, D_L = self.byte_width, self.in_patch.width
        patch = self.over_patches.attention_flops((K + 1) / 2)
        patch += 2 * self.over_patches.matrix_parameters
        byte = 2 * (self.in_patch.matrix_parameters + D_G * D_L + VALUES * D_L)
        return patch / P + byte + self.in_patch.attention_flops((P + 1) / 2)

    def state_bytes(self, length: int, number_bytes: int) -> int:
        """Bytes of the state after `length` bytes, `number_bytes` for each number of it.

        Keys and values of every patch that was begun and of the current patch's bytes, the global
        output for the current patch, and the embeddings of its bytes so far.
        """
        P = self.patch_bytes
        begun, inside = length // P + 1, length % P
        caches = self.over_patches.cache_bytes(begun, number_bytes)
        caches += self.in_patch.cache_bytes(inside + 1, number_bytes)
        return caches + (self.over_patches.width + inside * self.byte_width) * number_bytes


def _sizes(global_layers: int, local_layers: int) -> Sizes:
    """A size of the paper's table of models: D = 2048 and 1024, heads of 64, P = 8, T = 8192."""
    return Sizes(
        patch_bytes=8,
        context_bytes=8192,
        over_patches=Stage(width=2048, layers=global_layers, heads=32),
        in_patch=Stage(width=1024, layers=local_layers, heads=16),
    )


# arXiv 2305.07185, appendix: "758M (D=2048, L=14)", "262M (D=1024, L=18)" and so on.
PUBLISHED: Mapping[str, Sizes] = {
    "758M+262M": _sizes(14, 18),
    "1.3B+350M": _sizes(24, 24),
    "1.3B+218M": _sizes(24, 15),
}
# The numbers in the names are no counts: they are those of GPT-3's models of 24 layers, 1.3B and
# 350M with 50,257 words, times the share of layers: 1.3B 14 / 24 = 758M, 350M 18 / 24 = 262M.
NOMINAL_MODEL, NOMINAL_LAYERS = {2048: 1.3e9, 1024: 350e6}, 24
# arXiv 2401.13660, table 1: FLOPs a byte of MegaByte over those of MambaByte.
PUBLISHED_RATIOS: Mapping[tuple[str, str], float] = {
    ("758M+262M", "353M"): 1.02,
    ("1.3B+350M", "972M"): 0.54,
    ("1.3B+218M", "972M"): 0.40,
}
MAMBABYTE: Mapping[str, tuple[int, int]] = {"353M": (1024, 53), "972M": (1792, 48)}


def nominal_parameters(stage: Stage) -> float:
    """A stage's size as the paper's names count it."""
    return NOMINAL_MODEL[stage.width] * stage.layers / NOMINAL_LAYERS


def nominal_flops_per_byte(sizes: Sizes) -> float:
    """FLOPs a byte as 2 (m_g / P + m_l) of the names' sizes, and causal attention.

    With two FLOPs a parameter of MambaByte, this gives the published ratios within 0.01.
    """
    P, K = sizes.patch_bytes, sizes.context_bytes // sizes.patch_bytes
    patch = 2 * nominal_parameters(sizes.over_patches)
    patch += sizes.over_patches.attention_flops((K + 1) / 2)
    byte = 2 * nominal_parameters(sizes.in_patch)
    return patch / P + byte + sizes.in_patch.attention_flops((P + 1) / 2)


def mambabyte(name: str) -> ModelConfig:
    """MambaByte's layers (arXiv 2401.13660): Mamba over the 256 byte values."""
    width, layers = MAMBABYTE[name]
    mixer = MambaConfig(d_inner=2 * width, d_state=16, d_conv=4, dt_rank=width // 16)
    return ModelConfig(
        family="mamba", vocab_size=VALUES, d_model=width, layers=(mixer,) * layers, tied=False
    )


def parameters_of(config: ModelConfig) -> int:
    """How many numbers a model of longspan's has."""
    return sum(parameter.numel() for parameter in empty_decoder(config).state_dict().values())
