"""Run a bundle with ONNX Runtime and numpy alone: no torch, no longspan.

    python examples/plain_onnxruntime.py BUNDLE DOCUMENT "Question?"

What an application in any language does: read the state's layout from `longspan.json`, start from
zeros, feed chunks of tokens with `past.*` and take `present.*`, then go on one token at a time.
The `tokenizers` package turns text into ids and back; it exists for Rust, C++, Node and others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

CHUNK = 256
Arrays = dict[str, NDArray[Any]]


class Model:
    """A session over `model.cpu.onnx`, and the layout of its state (float32 weights)."""

    def __init__(self, bundle: Path) -> None:
        """Open the session; the weights stay mapped from `model.safetensors`."""
        self.manifest = json.loads((bundle / "longspan.json").read_text(encoding="utf-8"))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(
            bundle / "model.cpu.onnx", options, providers=["CPUExecutionProvider"]
        )

    def new_state(self) -> Arrays:
        """Zeros: nothing was read."""
        return {
            item["name"]: np.zeros(item["shape"], dtype=item["dtype"])
            for item in self.manifest["state"]
        }

    def forward(
        self, tokens: list[int], state: Arrays, keep: list[int]
    ) -> tuple[NDArray[np.float32], Arrays]:
        """Read `tokens`; return logits [len(keep), V] at the positions of `keep`, and the state."""
        feeds: Arrays = {f"past.{name}": value for name, value in state.items()}
        feeds["tokens"] = np.array([tokens], dtype=np.int64)
        feeds["keep"] = np.array(keep, dtype=np.int64)
        names = ["logits", *(f"present.{name}" for name in state)]
        logits, *after = self.session.run(names, feeds)
        return logits[0], dict(zip(state, after, strict=True))


def ask(bundle: Path, text: str, question: str, max_tokens: int = 32) -> str:
    """Read `text` in chunks, put `question` after it, and decode greedily."""
    model, tokenizer = Model(bundle), Tokenizer.from_file(str(bundle / "tokenizer.json"))
    state = model.new_state()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for start in range(0, len(ids), CHUNK):
        _, state = model.forward(ids[start : start + CHUNK], state, keep=[])

    prompt = model.manifest["prompt"]["template"].format(question=question)
    logits, state = model.forward(
        tokenizer.encode(prompt, add_special_tokens=False).ids, state, keep=[-1]
    )
    answer: list[int] = []
    while len(answer) < max_tokens:
        answer.append(int(logits[-1].argmax()))
        said = tokenizer.decode(answer)
        if any(stop in said for stop in model.manifest["prompt"]["stop"]):
            break
        logits, state = model.forward(answer[-1:], state, keep=[-1])
    return tokenizer.decode(answer).strip()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(ask(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"), sys.argv[3]))
