"""The bundle on disk: what `export` writes and everything else reads. No torch, no ONNX.

    bundle/
      longspan.json      the manifest, a `Manifest`
      model.safetensors  the only copy of the weights
      model.onnx         the graph for CUDA, and for any ONNX Runtime that has the weights' dtype
      model.cpu.onnx     the same function for CPUs: float32 arithmetic, scans as ONNX `Scan`
      tokenizer.json     absent when the checkpoint has none, and where tokens are bytes
      genai_config.json  so that onnxruntime-genai finds its way

`export` and `runtime` meet only here. Hashes in the manifest are SHA-256 of whole files;
`longspan verify` compares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from longspan.bundle_files import check_file, unreadable
from longspan.engines import Device, Engine
from longspan.errors import BadBundle
from longspan.field_types import require_field_types
from longspan.models.config import ModelConfig, Quantization
from longspan.tensors import CacheDType, DType, TensorSpec, dtype_name

FORMAT = 1
MANIFEST = "longspan.json"
WEIGHTS = "model.safetensors"
GRAPHS: dict[Device, str] = {"cuda": "model.onnx", "cpu": "model.cpu.onnx"}
TOKENIZER = "tokenizer.json"
GENAI_CONFIG = "genai_config.json"
# A tokenizer that needs no file: a token is a byte, its id the byte's value.
BYTES: Literal["bytes"] = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkBytes:
    """Bytes that a chunk of L tokens holds at its peak, beside caches of C entries.

    They are fixed + per_token L + per_pair L^2 + per_entry C + per_token_entry L C, and per_block
    for each begun block of block_tokens tokens, of most_blocks at most: what a scan keeps between
    the blocks that it computes side by side.
    """

    fixed: int = 0
    per_token: int = 0
    per_pair: int = 0
    per_entry: int = 0
    per_token_entry: int = 0
    per_block: int = 0
    block_tokens: int = 1
    most_blocks: int = 0

    def __post_init__(self) -> None:
        """Check that a block has tokens.

        Raises:
            ValueError: it has none.
        """
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens is {self.block_tokens}, and must be 1 or more")

    def at(self, tokens: int, capacity: int = 0) -> int:
        """Bytes for a chunk of `tokens` tokens, with caches of `capacity` entries."""
        each_token = self.per_token + self.per_pair * tokens + self.per_token_entry * capacity
        blocks = min(-(-tokens // self.block_tokens), self.most_blocks)
        once = self.fixed + self.per_block * blocks
        return once + each_token * tokens + self.per_entry * capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """How a question is put to the model, and where its answer ends."""

    template: str = "\n\nQuestion: {question}\nAnswer:"
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        """Check that the question has a place.

        Raises:
            ValueError: the template lacks ``{question}``.
        """
        if "{question}" not in self.template:
            raise ValueError("a prompt template must contain {question}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `longspan.json` says.

    Attributes:
        config: the layers.
        dtype: dtype of the weights, and of convolution tails, keys and values in the state; of
            quantised weights, that of their scales and of all that is not quantised.
        parameters: how many numbers the model has; a tied head counts once.
        weight_bytes: size of `model.safetensors`' tensors.
        state: every state tensor, for one sequence; caches without entries.
        chunk_bytes: for each engine, one entry a layer and one last for the residual and norms;
            a chunk's peak is the largest layer's plus the last.
        prompt: how `ask` puts a question.
        tokenizer: "bytes" where a token is a byte; None where `tokenizer.json` tells, or nothing.
        sentence_token: id of the token that reading puts after each sentence; None for none.
        eos: id of the token that ends an answer, if the model has one.
        files: SHA-256 of every other file of the bundle, by name.
        source: what was exported: path's last name, longspan's version, verification errors,
            under ``nonfinite`` the parameters that hold NaN or infinities, if any do, and under
            ``anchors`` what was asked of them and is known about them, if it was, and under
            ``calibration`` what quantisation costs on a text, if one was given.
    """

    config: ModelConfig
    dtype: DType
    parameters: int
    weight_bytes: int
    state: tuple[TensorSpec, ...]
    chunk_bytes: Mapping[Engine, tuple[ChunkBytes, ...]]
    prompt: Prompt = field(default_factory=Prompt)
    tokenizer: Literal["bytes"] | None = None
    sentence_token: int | None = None
    eos: int | None = None
    files: Mapping[str, str]
    source: Mapping[str, Any]

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of one sequence that do not grow with what is read."""
        return sum(spec.nbytes for spec in self.state)

    @property
    def quantization(self) -> Quantization | None:
        """How the matrices are stored in 8 or 4 bits; None where they are not."""
        return self.config.quantization

    @property
    def nonfinite(self) -> tuple[str, ...]:
        """Names of the parameters that hold NaN or infinities, which export was told to allow."""
        return tuple(self.source.get("nonfinite", ()))

    @property
    def cache_entry_bytes(self) -> int:
        """Bytes of one entry of every cache together; 0 for a state of fixed size."""
        return sum(spec.entry_bytes for spec in self.state)

    def state_at(
        self, capacity: int, cache_dtype: CacheDType | None = None
    ) -> tuple[TensorSpec, ...]:
        """Every state tensor, with room for `capacity` entries in each cache.

        With a `cache_dtype` keys and values are kept in it while a model runs; `.span` files hold
        them as `state` tells.
        """
        if cache_dtype is not None:
            return self.config.state_layout(self.dtype, capacity, cache_dtype)
        return tuple(spec.with_capacity(capacity) for spec in self.state)

    def chunk_peak_bytes(self, engine: Engine, tokens: int, capacity: int = 0) -> int:
        """Bytes of activations at the peak of a chunk of `tokens` tokens on `engine`."""
        *layers, rest = self.chunk_bytes[engine]
        largest = max((layer.at(tokens, capacity) for layer in layers), default=0)
        return largest + rest.at(tokens, capacity)

    def model_fingerprint(self) -> str:
        """Hex SHA-256 of what decides the state: config, weights, dtype."""
        facts = {
            "config": self.config.identity(),
            "dtype": self.dtype,
            "weights": self.files[WEIGHTS],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def tokenizer_fingerprint(self) -> str | None:
        """What tells how a text becomes tokens; None for a bundle without tokenizer.

        It is the hex SHA-256 of the tokenizer's file, or "bytes"; with a token after each sentence,
        the hex SHA-256 of that and the token.
        """
        named = self.tokenizer or self.files.get(TOKENIZER)
        if named is None or self.sentence_token is None:
            return named
        return hashlib.sha256(f"{named} {self.sentence_token}".encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        return {
            "format": FORMAT,
            "config": self.config.to_json(),
            "dtype": self.dtype,
            "quantization": None if self.quantization is None else asdict(self.quantization),
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "state_bytes": self.state_bytes,
            "cache_entry_bytes": self.cache_entry_bytes,
            "state": [asdict(spec) for spec in self.state],
            "chunk_bytes": {
                engine: [asdict(item) for item in items]
                for engine, items in self.chunk_bytes.items()
            },
            "prompt": asdict(self.prompt),
            "tokenizer": self.tokenizer,
            "sentence_token": self.sentence_token,
            "eos": self.eos,
            "files": dict(self.files),
            "source": dict(self.source),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: a field is missing or is not what it
                should be.
        """
        manifest = cls(
            config=ModelConfig.from_json(data["config"]),
            dtype=dtype_name(data["dtype"]),
            parameters=data["parameters"],
            weight_bytes=data["weight_bytes"],
            state=tuple(
                TensorSpec(
                    name=item["name"],
                    shape=_as_tuple(item["shape"]),
                    dtype=dtype_name(item["dtype"]),
                    counter=item.get("counter"),
                )
                for item in data["state"]
            ),
            chunk_bytes={
                engine: tuple(ChunkBytes(**item) for item in items)
                for engine, items in data["chunk_bytes"].items()
            },
            prompt=Prompt(
                template=data["prompt"]["template"], stop=_as_tuple(data["prompt"]["stop"])
            ),
            tokenizer=_tokenizer(data.get("tokenizer")),
            sentence_token=data.get("sentence_token"),
            eos=data["eos"],
            files=data["files"],
            source=data["source"],
        )
        require_field_types(manifest)
        return manifest

    def require_agreement(self) -> None:
        """Check that the state and the formulas are of the layers.

        Raises:
            ValueError: they are of others.
        """
        if self.state != self.config.state_layout(self.dtype):
            raise ValueError("state is not that of the layers in config")
        entries = len(self.config.layers) + 1
        for engine, items in self.chunk_bytes.items():
            if len(items) != entries:
                raise ValueError(
                    f"chunk_bytes of {engine} has {len(items)} entries, and must have {entries}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle's folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def weights_path(self) -> Path:
        """`model.safetensors`."""
        return self.path / WEIGHTS

    @property
    def tokenizer_path(self) -> Path | None:
        """`tokenizer.json`, or None for a bundle without one."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    def graph_path(self, device: Device) -> Path:
        """The graph that ONNX Runtime runs on `device`."""
        return self.path / GRAPHS[device]


def _as_tuple(value: Any) -> Any:
    """JSON has no tuples; what is no list is left to the check of types."""
    return tuple(value) if isinstance(value, list) else value


def _tokenizer(name: str | None) -> Literal["bytes"] | None:
    """The manifest's word for a tokenizer without a file; before there was one, it had none."""
    if name not in (BYTES, None):
        raise ValueError(f"tokenizer {name!r} is unknown; it is {BYTES!r} or null")
    return BYTES if name == BYTES else None


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest of the bundle at `path`, and check that its files are there and whole.

    Their bytes are not compared with the manifest's checksums, which takes reading them all:
    `longspan.runtime.verify.check_files` does.

    Raises:
        BadBundle: there is no bundle, it is damaged, or a newer longspan wrote it.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        found = "a folder without it" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise BadBundle(
            f"{path} is no bundle: a bundle is a folder with {MANIFEST}, and there is {found}. "
            "Make one with: longspan export CHECKPOINT BUNDLE"
        )
    try:
        data = json.loads(manifest_path.read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise BadBundle(
                f"{manifest_path} has format {data['format']}; this longspan reads up to {FORMAT}. "
                "Update longspan, or export the checkpoint again with this version."
            )
        manifest = Manifest.from_json(data)
        manifest.require_agreement()
    except OSError as error:
        raise unreadable(manifest_path, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadBundle(
            f"{manifest_path} cannot be read ({type(error).__name__}: {error}). "
            "Export the checkpoint again."
        ) from error
    for name in manifest.files:
        check_file(path, name, safetensors=name == WEIGHTS)
    return Bundle(path=path, manifest=manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest` as ``path/longspan.json``."""
    text = json.dumps(manifest.to_json(), indent=1) + "\n"
    (path / MANIFEST).write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of the file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
