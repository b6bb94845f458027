"""The list of a model's layers, and every kind of layer there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from longspan.models.config.attention import WindowAttentionConfig
from longspan.models.config.gla import GlaConfig
from longspan.models.config.mamba import Mamba2Config, MambaConfig
from longspan.models.config.mlp import MlpConfig
from longspan.tensors import DType, TensorSpec

LayerConfig = MambaConfig | Mamba2Config | GlaConfig | WindowAttentionConfig | MlpConfig

LAYER_KINDS: dict[str, type[LayerConfig]] = {
    kind.kind: kind
    for kind in (MambaConfig, Mamba2Config, GlaConfig, WindowAttentionConfig, MlpConfig)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, residual layers, final norm, head."""

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-5
    tied: bool = True

    def state_layout(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Every state tensor as ``layers.{i}.{name}``, for one sequence; tails in `dtype`."""
        return tuple(
            TensorSpec(name=f"layers.{i}.{spec.name}", shape=spec.shape, dtype=spec.dtype)
            for i, layer in enumerate(self.layers)
            for spec in layer.state(dtype)
        )

    def layers_by_kind(self) -> dict[str, int]:
        """How many layers of each kind there are, in the order of first appearance."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        return plain | {"layers": [{"kind": x.kind} | asdict(x) for x in self.layers]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a layer kind or a field is unknown.
        """
        return cls(**{**data, "layers": tuple(_layer(item) for item in data["layers"])})


def _layer(item: dict[str, Any]) -> LayerConfig:
    kind = item["kind"]
    if kind not in LAYER_KINDS:
        known = ", ".join(LAYER_KINDS)
        raise ValueError(f"layer kind {kind!r} is unknown; this longspan knows {known}")
    return LAYER_KINDS[kind](**{key: value for key, value in item.items() if key != "kind"})
