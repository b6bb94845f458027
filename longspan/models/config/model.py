"""The list of a model's layers, and every kind of layer there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from longspan.models.config.attention import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    HeadsConfig,
    WindowAttentionConfig,
    in_int8,
)
from longspan.models.config.conba import ConbaConfig
from longspan.models.config.gla import GlaConfig
from longspan.models.config.mamba import Mamba2Config, MambaConfig
from longspan.models.config.mlp import MlpConfig, MoeConfig
from longspan.models.config.quantization import Quantization
from longspan.tensors import CacheDType, DType, TensorSpec

Norm = Literal["rms", "layer"]
LayerConfig = (
    MambaConfig
    | Mamba2Config
    | ConbaConfig
    | GlaConfig
    | WindowAttentionConfig
    | FullAttentionConfig
    | AnchorAttentionConfig
    | MlpConfig
    | MoeConfig
)

LAYER_KINDS: dict[str, type[LayerConfig]] = {
    kind.kind: kind
    for kind in (
        MambaConfig,
        Mamba2Config,
        ConbaConfig,
        GlaConfig,
        WindowAttentionConfig,
        FullAttentionConfig,
        AnchorAttentionConfig,
        MlpConfig,
        MoeConfig,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, residual layers, final norm, head.

    Attributes:
        family: of the checkpoint, for people.
        vocab_size: V.
        d_model: D.
        layers: in order.
        norm_eps: of the norms before each mixer and before the head.
        norm: what these are: "rms" for RMSNorm, "layer" for LayerNorm with a bias.
        tied: whether the head is the embedding.
        quantization: how the matrices are stored in fewer bits; None where they are not.
    """

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-5
    norm: Norm = "rms"
    tied: bool = True
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Check the kind of norm, and that one matrix is quantised in one way.

        Raises:
            ValueError: there is no such norm, or a tied head differs from the embedding.
        """
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm {self.norm!r} is unknown; it is one of rms and layer")
        stored = self.quantization
        if stored is not None and self.tied and stored.embedding != stored.head:
            raise ValueError("a tied head is the embedding, and quantised where that is")

    @property
    def has_cache(self) -> bool:
        """Whether a layer's state grows with what is read."""
        return any(spec.counter for layer in self.layers for spec in layer.state("float32"))

    @property
    def anchor_layers(self) -> tuple[AnchorAttentionConfig, ...]:
        """The layers that keep anchors in place of the segments that they close."""
        return tuple(each for each in self.layers if isinstance(each, AnchorAttentionConfig))

    @property
    def keeps_keys(self) -> bool:
        """Whether a layer's state holds keys and values."""
        return any(isinstance(layer, HeadsConfig) for layer in self.layers)

    def layer_state(
        self, index: int, dtype: DType, cache_dtype: CacheDType | None = None
    ) -> tuple[TensorSpec, ...]:
        """The state tensors of one layer; the arguments are as for `state_layout`."""
        layer = self.layers[index]
        state = layer.state(dtype)
        return in_int8(state) if cache_dtype and isinstance(layer, HeadsConfig) else state

    def state_layout(
        self, dtype: DType, capacity: int = 0, cache_dtype: CacheDType | None = None
    ) -> tuple[TensorSpec, ...]:
        """Every state tensor as ``layers.{i}.{name}``, for one sequence; tails in `dtype`.

        Args:
            dtype: of convolution tails, keys and values.
            capacity: entries of each cache.
            cache_dtype: "int8" for keys and values as int8 with scales in `dtype`, which
                ``{name}_scale`` are; None for `dtype`.
        """
        return tuple(
            _prefixed(spec, f"layers.{i}.").with_capacity(capacity)
            for i in range(len(self.layers))
            for spec in self.layer_state(i, dtype, cache_dtype)
        )

    def layers_by_kind(self) -> dict[str, int]:
        """How many layers of each kind there are, in the order of first appearance."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        plain = asdict(self)
        return plain | {"layers": [{"kind": x.kind} | asdict(x) for x in self.layers]}

    def identity(self) -> dict[str, Any]:
        """What tells this model from others: `to_json` without the fields at their defaults.

        It stays the same when a later version adds a field whose default is what was there before.
        """
        layers = [{"kind": layer.kind} | _changed(layer) for layer in self.layers]
        found = _changed(self) | {"layers": layers}
        if self.quantization is not None and not self.quantization.experts:
            # Was not there at first, when all the other fields were told.
            del found["quantization"]["experts"]
        return found

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a layer kind or a field is unknown.
        """
        stored = data.get("quantization")
        made = {
            "layers": tuple(_layer(item) for item in data["layers"]),
            "quantization": None if stored is None else Quantization(**stored),
        }
        return cls(**{**data, **made})


def _changed(config: ModelConfig | LayerConfig) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    plain = asdict(config)
    return {f.name: plain[f.name] for f in fields(config) if getattr(config, f.name) != f.default}


def _prefixed(spec: TensorSpec, prefix: str) -> TensorSpec:
    counter = None if spec.counter is None else prefix + spec.counter
    return replace(spec, name=prefix + spec.name, counter=counter)


def _layer(item: dict[str, Any]) -> LayerConfig:
    kind = item["kind"]
    if kind not in LAYER_KINDS:
        known = ", ".join(LAYER_KINDS)
        raise ValueError(f"layer kind {kind!r} is unknown; this longspan knows {known}")
    # JSON has no tuples.
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
    del values["kind"]
    return LAYER_KINDS[kind](**values)
