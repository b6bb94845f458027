"""Stream an answer into a callback, and stop it from there.

    python examples/stream_with_cancel.py

The callback returns False when it has had enough. Closing the iterator ends the decoding at once,
and the memory can be asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import longspan


def stream(answer: longspan.Answer, callback: Callable[[str], bool]) -> str:
    """Hand each piece of `answer` to `callback` until it returns False; tell why it ended."""
    with closing(iter(answer)) as pieces:
        for piece in pieces:
            if not callback(piece):
                break
    return str(answer.finish)


def main() -> tuple[str, str]:
    """Cancel one answer after two pieces, and let another run to its end."""
    with longspan.load(longspan.builtin_bundle(), budget="512MiB", device="cpu") as runtime:
        memory = runtime.read("The pass key is 52890. Remember it.\n" + "It rained all day.\n" * 50)
        pieces: list[str] = []

        def two_pieces(piece: str) -> bool:
            pieces.append(piece)
            return len(pieces) < 2

        cancelled = stream(runtime.ask(memory, "What is the pass key?"), two_pieces)
        print(f"{cancelled} after {''.join(pieces)!r}")
        whole = runtime.ask(memory, "What is the pass key?")
        finished = stream(whole, lambda piece: True)
        print(f"{finished} after {whole.text!r}")
        return "".join(pieces), whole.text


if __name__ == "__main__":
    main()
