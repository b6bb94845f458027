"""What quantised weights cost on a text: how far logits move, and what perplexity they give.

The checkpoint as it is and the weights as they were written read the same tokens, both in float32
arithmetic on the CPU, beside each other; nothing is tuned.

    tokens = calibration_tokens("text.txt", tokenizer, byte_tokens=False)
    cost = measure_cost(checkpoint, dtype=dtype, weights=path, text="text.txt", tokens=tokens)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer

from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint, empty_decoder, load_decoder
from longspan.models.decoder import Decoder, State
from longspan.tensors import DType

# Of a text so much is read, in chunks of so many tokens.
MOST_TOKENS = 8192
CHUNK_TOKENS = 256
# No token is longer than this in text that people write.
MOST_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What quantisation changed on a text.

    Attributes:
        text: name of the file.
        tokens: how many of it were read, from its start.
        max_logit_error: largest difference of a logit.
        rms_logit_error: root of the mean square of the differences.
        rms_logit: root of the mean square of the unquantised logits, for comparison.
        perplexity_before: of the checkpoint as it is.
        perplexity_after: of the quantised weights.
    """

    text: str
    tokens: int
    max_logit_error: float
    rms_logit_error: float
    rms_logit: float
    perplexity_before: float
    perplexity_after: float

    @property
    def perplexity_change(self) -> float:
        """What perplexity grew by, as a share of what it was."""
        return self.perplexity_after / self.perplexity_before - 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"perplexity_change": self.perplexity_change}

    def line(self) -> str:
        """One line for people."""
        return (
            f"quantised, on {self.tokens:,} tokens of {self.text}: logits off by "
            f"{self.rms_logit_error:.2g} (rms) of {self.rms_logit:.2g}, {self.max_logit_error:.2g} "
            f"at most; perplexity {self.perplexity_before:.4g} -> {self.perplexity_after:.4g} "
            f"({self.perplexity_change:+.2%})"
        )


def calibration_tokens(
    path: str | Path, tokenizer: bytes | None, byte_tokens: bool
) -> NDArray[np.int64]:
    """The first tokens of a text, int64 [L].

    Args:
        path: a UTF-8 text.
        tokenizer: what the bundle's ``tokenizer.json`` holds.
        byte_tokens: whether a token is a byte.

    Raises:
        BadInput: the text cannot be read or is too short, or the model has no tokenizer.
    """
    asked = f"calibrate={str(path)!r} (--calibrate) was asked for"
    if tokenizer is None and not byte_tokens:
        raise BadInput(
            f"{asked}, and the model has no tokenizer to read it with. Give one with "
            "tokenizer=FILE (--tokenizer)."
        )
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MOST_TOKENS * MOST_CHARACTERS_A_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{asked}, and it cannot be read ({error}). It must be a UTF-8 text."
        ) from error
    if tokenizer is None:
        ids: list[int] = list(text.encode())
    else:
        ids = Tokenizer.from_str(tokenizer.decode()).encode(text).ids
    if len(ids) < 2:
        raise BadInput(
            f"{asked}, and it has {len(ids)} tokens. Perplexity is that of a token after another. "
            f"Give a longer text; up to {MOST_TOKENS:,} tokens are read."
        )
    return np.array(ids[:MOST_TOKENS], np.int64)


@torch.inference_mode()
def measure_cost(
    checkpoint: Checkpoint,
    *,
    dtype: DType,
    weights: Path,
    text: str | Path,
    tokens: NDArray[np.int64],
) -> Calibration:
    """Read `tokens` with both and compare.

    Args:
        checkpoint: with the config that says how the matrices are stored.
        dtype: of what is not quantised.
        weights: the ``model.safetensors`` that was written.
        text: the file that the tokens are from.
        tokens: int64 [L], L >= 2.
    """
    plain = replace(checkpoint, config=replace(checkpoint.config, quantization=None))
    models = load_decoder(plain, compute=torch.float32), _written(checkpoint, dtype, weights)
    states = [model.new_state(capacity=len(tokens)) for model in models]
    ids = torch.from_numpy(tokens)[None]
    squares, errors, largest, losses = 0.0, 0.0, 0.0, [0.0, 0.0]
    for start in range(0, len(tokens), CHUNK_TOKENS):
        part = ids[:, start : start + CHUNK_TOKENS]
        logits: list[torch.Tensor] = []
        for i, model in enumerate(models):
            found, states[i] = _read(model, part, states[i])
            losses[i] += _loss(found, ids[0, start + 1 : start + 1 + len(found)])
            logits.append(found)
        before, after = logits
        errors += float((after - before).double().square().sum())
        squares += float(before.double().square().sum())
        largest = max(largest, float((after - before).abs().max()))
    count = len(tokens) * checkpoint.config.vocab_size
    return Calibration(
        text=Path(text).name,
        tokens=len(tokens),
        max_logit_error=largest,
        rms_logit_error=(errors / count) ** 0.5,
        rms_logit=(squares / count) ** 0.5,
        perplexity_before=exp(losses[0] / (len(tokens) - 1)),
        perplexity_after=exp(losses[1] / (len(tokens) - 1)),
    )


def _written(checkpoint: Checkpoint, dtype: DType, weights: Path) -> Decoder:
    """The decoder over the weights that were written."""
    stored: torch.dtype = getattr(torch, dtype)
    decoder = empty_decoder(checkpoint.config, dtype=stored, compute=torch.float32)
    with safe_open(str(weights), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    decoder.load_state_dict(tensors, assign=True)
    return decoder.requires_grad_(False).eval()


def _read(model: Decoder, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    logits, state = model(ids, torch.arange(ids.shape[1]), state)
    return logits[0], state


def _loss(logits: torch.Tensor, following: torch.Tensor) -> float:
    """Sum of the negative log likelihoods of what follows; nothing follows the text's last."""
    rows = logits[: len(following)].double()
    return float(torch.nn.functional.cross_entropy(rows, following, reduction="sum"))
