"""The decoder: embedding, residual layers, final norm, head. One definition for every use.

The same code reads a chunk, makes one step, and is exported:

    decoder = Decoder(config)
    state = decoder.new_state()
    logits, state = decoder(tokens, None, state)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from longspan.kernels.linear import linear
from longspan.models.config import LayerConfig, ModelConfig
from longspan.models.mixers import make_mixer
from longspan.models.norm import make_norm
from longspan.tensors import DType, dtype_name

State = dict[str, torch.Tensor]


def _from_start(keep: torch.Tensor, length: int) -> torch.Tensor:
    """Positions counted from the start, as torch wants them.

    ONNX's Gather counts negative ones from the end by itself. It must: where nodes on the host and
    on CUDA read `keep`, ONNX Runtime 1.31 shows those on CUDA its default instead of the input.
    """
    if torch.onnx.is_in_onnx_export():
        return keep
    return torch.where(keep < 0, keep + length, keep)


class Layer(nn.Module):
    """One residual block: x + mixer(norm(x)), the sum in the residual's float32."""

    def __init__(self, config: LayerConfig, model: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = make_norm(model, dtype)
        self.mixer = make_mixer(config, model.d_model, dtype)

    def forward(
        self, x: torch.Tensor, state: State, tokens: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, State]:
        """Read x float32 [B, L, D], made of tokens int64 [B, L]; the mixer computes in `dtype`."""
        asked = (tokens,) if getattr(self.mixer, "reads_tokens", False) else ()
        y, state = self.mixer(self.norm(x, dtype), state, *asked)
        return x + y.to(x.dtype), state


class Decoder(nn.Module):
    """A list of layers between an embedding and a head, for any L >= 1.

    Args:
        config: the layers.
        dtype: dtype of the weights.
        compute: dtype of activations; None for the weights'. float32 over bfloat16 weights is
            what CPUs use. The residual is float32 (float64 when computing in float64).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
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
            for spec in self.config.state_layout(self.state_dtype(), capacity)
        }

    def forward(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None,
        state: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, State]:
        """Read `tokens` from `state`.

        Args:
            tokens: int64 [B, L], L >= 1, ids below the vocabulary's size.
            keep: int64 [n], the positions of this call whose logits are wanted, negative ones
                from the end; None for the last. Empty while reading.
            state: as `new_state` gives it; it is not changed.

        Returns:
            Logits float32 [B, n, V], and the state after the last token.
        """
        length = tokens.shape[1]
        x = torch.nn.functional.embedding(tokens, self.embedding)
        x = x.to(torch.promote_types(self.compute, torch.float32))
        after: State = {}
        for i, layer in enumerate(self.layers):
            prefix = f"layers.{i}."
            names = [spec.name for spec in self.config.layers[i].state(self.state_dtype())]
            past = {name: state[prefix + name] for name in names}
            x, new = layer(x, past, tokens, self.compute)
            after |= {prefix + name: new[name] for name in names}
        x = x[:, -1:] if keep is None else x.index_select(1, _from_start(keep, length))
        x = self.norm(x, self.compute)
        logits = linear(x, self.embedding if self.head is None else self.head)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), after
