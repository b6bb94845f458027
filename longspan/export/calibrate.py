"""What quantised weights cost on a text: how far logits move, and what perplexity they give.

The checkpoint as it is and the weights as they were written read the same tokens, both in float32
arithmetic on the CPU, beside each other. They are no tokens that weights were rounded for.

    text = calibration_text("text.txt", tokenizer, byte_tokens=False, fit=True)
    cost = measure_cost(checkpoint, text, dtype=dtype, weights=path)
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

# Of a text so many tokens at most tell the cost, read in chunks of so many.
MOST_TOKENS = 8192
CHUNK_TOKENS = 256
# Weights may be rounded for the tokens before these, if the text is long enough for both: a short
# one would be learnt by heart.
MOST_FITTED_TOKENS = 16384
FEWEST_FITTED_TOKENS = 4096
# No token is longer than this in text that people write.
MOST_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What quantisation changed on a text.

    Attributes:
        text: name of the file.
        fitted_tokens: for how many of it, from its start, the weights were rounded; 0 where they
            were rounded to the nearest.
        tokens: how many others, after them, tell the cost.
        max_logit_error: largest difference of a logit.
        rms_logit_error: root of the mean square of the differences.
        rms_logit: root of the mean square of the unquantised logits, for comparison.
        perplexity_before: of the checkpoint as it is.
        perplexity_after: of the quantised weights.
    """

    text: str
    fitted_tokens: int
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
        how = "to the nearest"
        if self.fitted_tokens:
            how = f"for the {self.fitted_tokens:,} tokens before them"
        return (
            f"quantised, on {self.tokens:,} tokens of {self.text}, rounded {how}: logits off by "
            f"{self.rms_logit_error:.2g} (rms) of {self.rms_logit:.2g}, {self.max_logit_error:.2g} "
            f"at most; perplexity {self.perplexity_before:.4g} -> {self.perplexity_after:.4g} "
            f"({self.perplexity_change:+.2%})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationText:
    """The tokens of a text that are used.

    Attributes:
        name: of the file.
        fitted: int64 [n], for which weights are rounded; n = 0 to round to the nearest.
        measured: int64 [L], L >= 2, others after them, which tell the cost.
    """

    name: str
    fitted: NDArray[np.int64]
    measured: NDArray[np.int64]


def calibration_text(
    path: str | Path, tokenizer: bytes | None, *, byte_tokens: bool, fit: bool
) -> CalibrationText:
    """The first tokens of a text.

    Args:
        path: a UTF-8 text.
        tokenizer: what the bundle's ``tokenizer.json`` holds.
        byte_tokens: whether a token is a byte.
        fit: whether weights are rounded for it.

    Raises:
        BadInput: the text cannot be read or is too short, or the model has no tokenizer.
    """
    most = MOST_FITTED_TOKENS + MOST_TOKENS
    tokens = _first_tokens(path, tokenizer, byte_tokens=byte_tokens, most=most)
    split = 0
    if len(tokens) * 2 // 3 >= FEWEST_FITTED_TOKENS:
        split = len(tokens) - min(len(tokens) // 3, MOST_TOKENS)
    return CalibrationText(
        name=Path(path).name,
        fitted=tokens[: split if fit else 0],
        measured=tokens[split : split + MOST_TOKENS],
    )


def _first_tokens(
    path: str | Path, tokenizer: bytes | None, *, byte_tokens: bool, most: int
) -> NDArray[np.int64]:
    asked = f"calibrate={str(path)!r} (--calibrate) was asked for"
    if tokenizer is None and not byte_tokens:
        raise BadInput(
            f"{asked}, and the model has no tokenizer to read it with. Give one with "
            "tokenizer=FILE (--tokenizer)."
        )
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(most * MOST_CHARACTERS_A_TOKEN)
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
            f"Give a longer text; up to {most:,} tokens are read."
        )
    return np.array(ids[:most], np.int64)


@torch.inference_mode()
def measure_cost(
    checkpoint: Checkpoint, text: CalibrationText, *, dtype: DType, weights: Path
) -> Calibration:
    """Read a text with both and compare.

    Args:
        checkpoint: with the config that says how the matrices are stored.
        text: what to read.
        dtype: of what is not quantised.
        weights: the ``model.safetensors`` that was written.
    """
    tokens = text.measured
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
        text=text.name,
        fitted_tokens=len(text.fitted),
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
