"""The decoder: embedding, residual layers, final norm, head. One definition for every use.

The same code reads a chunk, makes one step, and is exported:

    decoder = Decoder(config)
    state = decoder.new_state()
    logits, state = decoder(tokens, None, state)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, cast

import torch
from torch import nn

from longspan.kernels.choice import chosen
from longspan.kernels.deferred_norm import Added, DeferredNorm, NextNorm, defers_norms
from longspan.kernels.dequantize import dequantize
from longspan.kernels.linear import linear
from longspan.kernels.quantized_linear import quantized_linear
from longspan.models.config import AnchorAttentionConfig, LayerConfig, ModelConfig, Quantization
from longspan.models.linear import Linear, quantized_parameters
from longspan.models.mixers import make_mixer
from longspan.models.moe import Experts
from longspan.models.norm import RmsNorm, make_norm
from longspan.tensors import CacheDType, DType, dtype_name

State = dict[str, torch.Tensor]


def _kept(
    x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of x and y at the positions `keep`, or the last: others need no sum and no norm.

    In a graph the sum comes first, and ONNX's Gather counts negative positions from the end by
    itself, so that one node reads `keep`. It must: where nodes on the host and on CUDA read it,
    ONNX Runtime 1.31 shows those on CUDA its default instead of the input.
    """
    if keep is None:
        return x[:, -1:], y[:, -1:]
    if torch.onnx.is_in_onnx_export():
        return (x + y.to(x.dtype)).index_select(1, keep), None
    from_start = torch.where(keep < 0, keep + x.shape[1], keep)
    return x.index_select(1, from_start), y.index_select(1, from_start)


def counted_alike(layer: LayerConfig) -> dict[str, Hashable]:
    """The counters of a layer's state, each with what it has in common with those equal to it.

    All count the same tokens; of anchors, those with the same rule keep as many entries.
    """
    rule = layer.rule if isinstance(layer, AnchorAttentionConfig) else None
    names = [spec.name for spec in layer.state("float32") if spec.dtype == "int64"]
    return {name: name if name == "position" else (name, rule) for name in names}


class Layer(nn.Module):
    """One residual block: a norm and a mixer.

    The mixer's output is added to the residual by the norm of the next layer: one reading of both.
    """

    def __init__(self, config: LayerConfig, model: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = make_norm(model, dtype)
        self.mixer = make_mixer(config, model.d_model, dtype)

    def forward(
        self, x: torch.Tensor | DeferredNorm, state: State, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """What the mixer makes of x [B, L, D], normalised, made of tokens int64 [B, L]."""
        asked = (tokens,) if getattr(self.mixer, "reads_tokens", False) else ()
        result: tuple[torch.Tensor, State] = self.mixer(x, state, *asked)
        return result

    def step_and_add(
        self, x: torch.Tensor | DeferredNorm, state: State, then: NextNorm
    ) -> tuple[Added, State]:
        """The same of one token, added to the residual, and the sum's norm; `defers_norms` asks."""
        result: tuple[Added, State] = cast(Any, self.mixer).step_and_add(x, state, then)
        return result

    @property
    def defers_norms(self) -> bool:
        """Whether the mixer reads and gives norms before their division."""
        return isinstance(self.norm, RmsNorm) and getattr(self.mixer, "defers_norms", False)

    def next_norm(self, x: torch.Tensor) -> NextNorm:
        """The norm of a sum with the residual x, which the mixer reads; `defers_norms` asks."""
        norm, reader = cast(RmsNorm, self.norm), cast(Linear, cast(Any, self.mixer).reads_first)
        return norm.deferred(x, None if reader.bits is None else reader.weight, reader.bits)


class Decoder(nn.Module):
    """A list of layers between an embedding and a head, for any L >= 1.

    Args:
        config: the layers.
        dtype: dtype of the weights.
        compute: dtype of activations; None for the weights'. float32 over bfloat16 weights is
            what CPUs use. The residual is float32 (float64 when computing in float64).
        cache_dtype: what the state keeps keys and values in; None for the weights' dtype.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
        cache_dtype: CacheDType | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.cache_dtype = cache_dtype
        self.dtype = dtype
        self.compute = compute or dtype
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model, dtype=dtype))
        self.layers = nn.ModuleList(Layer(layer, config, dtype=dtype) for layer in config.layers)
        self.norm = make_norm(config, dtype)
        self.head = (
            None
            if config.tied
            else nn.Parameter(torch.empty(config.vocab_size, config.d_model, dtype=dtype))
        )
        if config.quantization is not None:
            self._quantize_(config.quantization)

    def _quantize_(self, stored: Quantization) -> None:
        """Take matrices of 8 or 4 bits, not set."""
        for module in self.layers.modules():
            if isinstance(module, Linear | Experts):
                module.quantize_(stored)
        if self._bits(embedding=True):
            parameters = quantized_parameters(self.embedding, stored)
            self.embedding, self.embedding_scales, self.embedding_zeros = parameters
        if self.head is not None and self._bits(embedding=False):
            parameters = quantized_parameters(self.head, stored)
            self.head, self.head_scales, self.head_zeros = parameters

    def _bits(self, *, embedding: bool) -> int | None:
        """Bits of the embedding or the head; None where it is of floating point."""
        stored = self.config.quantization
        if stored is None or not stored.takes(self.config.d_model):
            return None
        return stored.bits if (stored.embedding if embedding else stored.head) else None

    def state_dtype(self) -> DType:
        """Name of the dtype of convolution tails, keys and values: the weights' own."""
        return dtype_name(str(self.dtype).removeprefix("torch."))

    def new_state(
        self, batch: int = 1, device: torch.device | str | None = None, capacity: int = 0
    ) -> dict[str, torch.Tensor]:
        """The state before the first token: zeros, `batch` sequences wide.

        Args:
            batch: sequences, B.
            device: None for the weights'.
            capacity: entries of each cache, C.
        """
        return {
            spec.name: torch.zeros(
                spec.shape if spec.dtype == "int64" else (batch, *spec.shape[1:]),
                dtype=getattr(torch, spec.dtype),
                device=device or self.embedding.device,
            )
            for spec in self.config.state_layout(self.state_dtype(), capacity, self.cache_dtype)
        }

    def forward(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None,
        state: State,
        *,
        donate: bool = False,
        logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State]:
        """Read `tokens` from `state`.

        Args:
            tokens: int64 [B, L], L >= 1, ids below the vocabulary's size.
            keep: int64 [n], the positions of this call whose logits are wanted, negative ones
                from the end; None for the last. Empty while reading.
            state: as `new_state` gives it; it is not changed unless `donate` says so.
            donate: whether the caller gives the state away. Then a layer's tensors leave it when
                the layer takes them, and are freed once its next ones exist.
            logits: float32 [B, n, V] that takes them; None for new memory.

        Returns:
            Logits float32 [B, n, V], and the state after the last token.
        """
        x = self._embedded(tokens)
        # What is still to be added to x; then its norm, under the same name, so that it is freed.
        y: torch.Tensor | DeferredNorm | None = None
        counted: dict[Hashable, torch.Tensor] = {}
        after: State = {}
        left = state if donate else dict(state)
        for i, layer in enumerate(cast(Iterable[Layer], self.layers)):
            prefix = f"layers.{i}."
            kept = self.config.layer_state(i, self.state_dtype(), self.cache_dtype)
            names = [spec.name for spec in kept]
            past = {name: left.pop(prefix + name) for name in names}
            if torch.onnx.is_in_onnx_export():
                # What follows from counters is then computed once for all layers, not in each.
                alike = counted_alike(self.config.layers[i])
                past |= {name: counted.setdefault(each, past[name]) for name, each in alike.items()}
            if not isinstance(y, DeferredNorm):
                x, y = layer.norm(x, y, self.compute)
            then = self._next_norm(i, x, keep)
            if then is None:
                y, new = layer(y, past, tokens)
            else:
                (x, y), new = layer.step_and_add(y, past, then)
            after |= {prefix + name: new[name] for name in names}
        if not isinstance(y, DeferredNorm):
            assert y is not None, "there is a layer"
            _, y = self.norm(*_kept(x, y, keep), self.compute)
        found = self._logits(y, logits)
        return found.to(torch.promote_types(found.dtype, torch.float32)), after

    def _next_norm(self, index: int, x: torch.Tensor, keep: torch.Tensor | None) -> NextNorm | None:
        """The norm after layer `index`, where its mixer and what reads it have it between them."""
        layer, *later = cast(Iterable[Layer], self.layers[index : index + 2])
        if not (layer.defers_norms and defers_norms(x, self.compute)):
            return None
        if later:
            return later[0].next_norm(x) if later[0].defers_norms else None
        # The head divides where it is packed, and its row is wanted.
        bits = self._bits(embedding=self.head is None)
        divides = bits is not None and chosen("quantized_linear", x) == "triton"
        if not divides or keep is not None or not isinstance(self.norm, RmsNorm):
            return None
        return self.norm.deferred(x, self._head_matrix, bits)

    @property
    def _head_matrix(self) -> torch.Tensor:
        """What the head multiplies with: the embedding, where they are tied."""
        matrix: torch.Tensor = self.embedding if self.head is None else self.head
        return matrix

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, in the residual's dtype."""
        residual = torch.promote_types(self.compute, torch.float32)
        bits = self._bits(embedding=True)
        if bits is None:
            return torch.nn.functional.embedding(tokens, self.embedding).to(residual)
        return dequantize(
            self.embedding, self.embedding_scales, self.embedding_zeros,
            bits=bits, width=self.config.d_model, dtype=residual, rows=tokens,
        )  # fmt: skip

    def _logits(self, y: torch.Tensor | DeferredNorm, out: torch.Tensor | None) -> torch.Tensor:
        bits = self._bits(embedding=self.head is None)
        if bits is None:
            assert isinstance(y, torch.Tensor), "`_next_norm` defers for a packed head alone"
            return linear(y, self._head_matrix, out=out)
        if self.head is None:
            packing = self.embedding_scales, self.embedding_zeros
        else:
            packing = self.head_scales, self.head_zeros
        return quantized_linear(y, self._head_matrix, *packing, bits=bits, out=out)
