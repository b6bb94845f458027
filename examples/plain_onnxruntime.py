"""Run a bundle with ONNX Runtime and numpy alone: no torch, no longspan.

    python examples/plain_onnxruntime.py BUNDLE DOCUMENT "Question?"

What an application in any language does: read the state's layout from `longspan.json`, give the
caches room, start from zeros, feed chunks of tokens with `past.*` and take `present.*`, then go on
one token at a time. The graph counts and drops by itself; only the room is the caller's to know.
The `tokenizers` package turns text into ids and back; it exists for Rust, C++, Node and others.
onnxruntime's own wheels send telemetry, unless ORT_DISABLE_TELEMETRY=1 is set; longspan sets it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

CHUNK = 256
Arrays = dict[str, NDArray[Any]]
# One or more of . ! ? with what closes after them, before white space or the end of the text.
SENTENCE_END = re.compile(r"[.!?]+[\"'\u2019\u201d\u00bb)\]}]*(?=\s|\Z)")


class Model:
    """A session over `model.cpu.onnx`, and the layout of its state (float32 or float16 weights)."""

    def __init__(self, bundle: Path) -> None:
        """Open the session; float32 weights stay mapped from `model.safetensors`."""
        self.manifest = json.loads((bundle / "longspan.json").read_text(encoding="utf-8"))
        if self.manifest["dtype"] == "bfloat16":
            sys.exit(
                f"{bundle} has weights of bfloat16, and so has its state, which numpy does not "
                "know. Export the checkpoint with --weights float32."
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(
            bundle / "model.cpu.onnx", options, providers=["CPUExecutionProvider"]
        )

    def entries(self, ids: list[int]) -> int:
        """Entries that each cache needs to read `ids` from the start; 0 without caches."""
        layers = self.manifest["config"]["layers"]
        return max((most_entries(layer, ids) for layer in layers), default=0)

    def new_state(self, capacity: int = 0) -> Arrays:
        """Zeros: nothing was read. What has a counter is a cache [1, capacity, heads, width]."""
        state: Arrays = {}
        for item in self.manifest["state"]:
            shape = list(item["shape"])
            if item.get("counter") is not None:
                shape[1] = capacity
            state[item["name"]] = np.zeros(shape, dtype=item["dtype"])
        return state

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


def most_entries(layer: dict[str, Any], ids: list[int]) -> int:
    """The most entries that a layer's cache has on the way through `ids`.

    Full attention keeps every token; anchors take the place of the segments that they end.
    """
    if layer["kind"] not in ("full_attention", "anchor_attention"):
        return 0
    ends, every = set(layer.get("anchor_ids", ())), layer.get("anchor_every")
    anchors = open_tokens = most = 0
    for read, token in enumerate(ids, start=1):
        if token in ends or (every is not None and read % every == 0):
            anchors, open_tokens = anchors + 1, 0
        else:
            open_tokens += 1
        most = max(most, anchors + open_tokens)
    return most


class Text:
    """Text to ids and back, with the token after every sentence that AnLLM's models read."""

    def __init__(self, bundle: Path, sentence_token: int | None) -> None:
        """Read `tokenizer.json`; what a text says of special tokens is text."""
        self.tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True
        self.sentence_token = sentence_token
        twice = self.ids("a a")
        # SentencePiece puts a space before a text, so that "a a" is the same token twice.
        self.puts_space = twice[: len(twice) // 2] == twice[len(twice) // 2 :]

    def ids(self, text: str) -> list[int]:
        """The ids of a text that stands alone."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The ids of a text; `continues` where another text stands before it."""
        found: list[int] = []
        for part, ends in sentences(text) if self.sentence_token is not None else [(text, False)]:
            found += self.part(part, continues=continues or bool(found))
            if ends and self.sentence_token is not None:
                found.append(self.sentence_token)
        return found

    def part(self, text: str, *, continues: bool) -> list[int]:
        """The ids of a text, without the space that would be put before it."""
        if not (continues and self.puts_space):
            return self.ids(text)
        if text.startswith(" "):
            return self.ids(text[1:])
        for sign in "\n.a0":
            before, both = self.ids(sign), self.ids(sign + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self.ids(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without what stands after sentences."""
        shown = [token for token in ids if token != self.sentence_token]
        said: str = self.tokenizer.decode(shown, skip_special_tokens=False)
        return said


def sentences(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each ends a sentence; only the last may not."""
    start = 0
    for match in SENTENCE_END.finditer(text):
        yield text[start : match.end()], True
        start = match.end()
    if start < len(text):
        yield text[start:], False


def ask(bundle: Path, text: str, question: str, max_tokens: int = 32) -> str:
    """Read `text` in chunks, put `question` after it, and decode greedily."""
    model = Model(bundle)
    words = Text(bundle, model.manifest.get("sentence_token"))
    ids = words.encode(text)
    prompt = model.manifest["prompt"]["template"].replace("{question}", question)
    asked = words.encode(prompt, continues=True)

    # As many entries as the text and the question take, and one for each token of the answer.
    state = model.new_state(capacity=model.entries(ids + asked) + max_tokens)
    for start in range(0, len(ids), CHUNK):
        _, state = model.forward(ids[start : start + CHUNK], state, keep=[])

    logits, state = model.forward(asked, state, keep=[-1])
    answer: list[int] = []
    said = ""
    while len(answer) < max_tokens:
        token = int(logits[-1].argmax())
        if token == model.manifest["eos"]:
            break
        answer.append(token)
        said = words.decode(answer)
        if ends := [said.index(stop) for stop in model.manifest["prompt"]["stop"] if stop in said]:
            said = said[: min(ends)]
            break
        logits, state = model.forward([token], state, keep=[-1])
    return said.strip()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(ask(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"), sys.argv[3]))
