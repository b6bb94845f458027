"""What `Runtime.read_to` did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longspan.engines import Engine
from longspan.runtime.documents import DocumentRange
from longspan.runtime.memory import Memory
from longspan.runtime.plan import Plan
from longspan.runtime.reader import Reader
from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """A reading that was saved.

    Attributes:
        memory: the `.span` file.
        memory_bytes: bytes of the state and the logits in it.
        documents: where each stands in the text that was read.
        byte_tokens: whether a token is a byte, and so a position a byte offset.
        tokens: tokens of the document.
        chunk_tokens: tokens that went through the model together.
        seconds: of this run; what was read before an interruption does not count.
        tokens_per_second: of this run.
        peak_bytes: the most that the process held on its device.
        planned_bytes: the plan's total.
        budget_bytes: what it may hold.
        engine: what computed.
    """

    memory: Path
    memory_bytes: int
    documents: tuple[DocumentRange, ...]
    byte_tokens: bool
    tokens: int
    chunk_tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    planned_bytes: int
    budget_bytes: int
    engine: Engine

    @classmethod
    def of(
        cls, path: Path, memory: Memory, reader: Reader, plan: Plan, peak_bytes: int
    ) -> ReadReport:
        """The report of `reader`, whose memory was saved at `path`."""
        return cls(
            memory=path,
            memory_bytes=memory.nbytes,
            documents=memory.ranges,
            byte_tokens=memory.byte_tokens,
            tokens=memory.tokens,
            chunk_tokens=plan.chunk_tokens,
            seconds=reader.seconds,
            tokens_per_second=reader.tokens / reader.seconds,
            peak_bytes=peak_bytes,
            planned_bytes=plan.total_bytes,
            budget_bytes=plan.budget_bytes,
            engine=plan.engine,
        )

    def text(self) -> str:
        """Two lines for people, and where tokens are bytes one for each document."""
        text = (
            f"{self.tokens:,} tokens read in {self.seconds:.1f} s ({self.tokens_per_second:,.0f} "
            f"a second, {self.engine}); the memory is {self.memory} "
            f"({format_bytes(self.memory_bytes)}).\n"
            f"Peak {format_bytes(self.peak_bytes)}, planned {format_bytes(self.planned_bytes)}, "
            f"budget {format_bytes(self.budget_bytes)}."
        )
        places = self.documents if self.byte_tokens else ()
        return "\n".join([text, *(place.text() for place in places)])
