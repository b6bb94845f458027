"""One kernel and its peers on one device: times in turn, errors, extra memory, the floor.

    rows = run_case(CASES["ssd"], PEERS["ssd"], bench, [16384, 65536])

A row is what `--json` prints and what `--from` reads again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from kernel_case import Case, Draw, Inputs, Outputs, widened
from peer import Peer, PeerMissing, Prepared
from timing import Ceilings, Clock, Timing, alternate, extra_bytes

OWN = "longspan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """How far a tensor is from the float64 reference.

    Attributes:
        largest: of |found - expected|.
        relative: norm of the difference over the norm of what was expected.
    """

    largest: float
    relative: float

    @classmethod
    def between(cls, found: torch.Tensor, expected: torch.Tensor) -> Error:
        """Of one tensor; NaN where something found is NaN."""
        difference = found.double() - expected.double()
        return cls(
            largest=float(difference.abs().max()),
            relative=float(difference.norm() / expected.double().norm()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One implementation of one op at one length.

    Attributes:
        op: name on the command line.
        what: the size in words.
        who: whose implementation.
        tokens: L.
        timing: None where it did not run.
        floor_ms: below which nothing can be, and what sets it (`bound`).
        extra_bytes: CUDA: held beyond inputs and outputs, copies of inputs in another layout
            among them; None elsewhere.
        error_tokens: the length at which the errors were taken.
        error: of the output; None where it is another function, or did not run.
        state_errors: of each tensor of the state after the last token.
        skipped: why it did not run, or None.
    """

    op: str
    what: str
    who: str
    tokens: int
    timing: Timing | None
    floor_ms: float
    bound: str
    extra_bytes: int | None = None
    error_tokens: int
    error: Error | None = None
    state_errors: tuple[Error, ...] = ()
    skipped: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Read what `asdict` made.

        Raises:
            ValueError: the keys are not those of a row.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise ValueError(f"a row has the keys {sorted(names)}; found {sorted(data)}")
        timing, error = data["timing"], data["error"]
        return cls(
            **{
                **data,
                "timing": None if timing is None else Timing(**timing),
                "error": None if error is None else Error(**error),
                "state_errors": tuple(Error(**each) for each in data["state_errors"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every case is measured with.

    Attributes:
        draw: device and dtype.
        clock: of the device.
        ceilings: as measured.
        rounds: the most rounds of a comparison.
        seconds: after which no further round begins.
        error_tokens: the length at which errors are taken; None for each case's own.
    """

    draw: Draw
    clock: Clock
    ceilings: Ceilings
    rounds: int
    seconds: float
    error_tokens: int | None = None


def run_case(
    case: Case, peers: Sequence[Peer], bench: Bench, lengths: Sequence[int]
) -> Iterator[Row]:
    """Rows of a case, longspan's first, length by length."""
    own = Peer(name=OWN, prepare=lambda inputs: lambda: case.call(inputs))
    everyone = (own, *peers)
    error_tokens = bench.error_tokens or case.error_tokens
    errors, failed = _errors(case, everyone, bench, error_tokens)
    for tokens in lengths:
        floor_ms, bound = bench.ceilings.floor(
            case.bytes_moved(tokens, bench.draw.dtype.itemsize), case.flops(tokens)
        )
        measured, skipped = _measured(case, everyone, bench, tokens, failed)
        for peer in everyone:
            timing, extra = measured.get(peer.name, (None, None))
            found = errors.get(peer.name, ())
            yield Row(
                op=case.op,
                what=case.what,
                who=peer.name,
                tokens=tokens,
                timing=timing,
                floor_ms=floor_ms,
                bound=bound,
                extra_bytes=extra,
                error_tokens=error_tokens,
                error=found[0] if found else None,
                state_errors=tuple(found[1:]),
                skipped=skipped.get(peer.name),
            )


@torch.inference_mode()
def _errors(
    case: Case, everyone: Sequence[Peer], bench: Bench, tokens: int
) -> tuple[dict[str, list[Error]], dict[str, str]]:
    """Errors of all that compute the same function, and why others do not run at all."""
    inputs = case.inputs(bench.draw, tokens)
    expected = case.compared(case.reference(widened(inputs)))
    errors: dict[str, list[Error]] = {}
    failed: dict[str, str] = {}
    # longspan's last, and each once: a call may overwrite what it is given.
    for peer in (*everyone[1:], everyone[0]):
        if not peer.same:
            continue
        call, outputs, why = _prepared(peer, inputs)
        if call is None:
            failed[peer.name] = why
            continue
        found = peer.finish(inputs, outputs)
        found = case.compared(found) if peer.name == OWN else found
        # A peer may give no state.
        pairs = zip(found, expected[: len(found)], strict=True)
        errors[peer.name] = [Error.between(*pair) for pair in pairs]
    return errors, failed


@torch.inference_mode()
def _measured(
    case: Case, everyone: Sequence[Peer], bench: Bench, tokens: int, failed: Mapping[str, str]
) -> tuple[dict[str, tuple[Timing, int | None]], dict[str, str]]:
    """Times and extra bytes by name, and why some have none."""
    cuda = bench.draw.device == "cuda"
    inputs = case.inputs(bench.draw, tokens)
    calls: dict[str, Prepared] = {}
    extra: dict[str, int | None] = {}
    skipped = dict(failed)
    for peer in everyone:
        if peer.name in failed:
            continue
        before = torch.cuda.memory_allocated() if cuda else 0
        call, outputs, why = _prepared(peer, inputs)
        # Or they would count as the peer's own copies.
        del outputs
        if call is None:
            skipped[peer.name] = why
            continue
        own_copies = torch.cuda.memory_allocated() - before if cuda else 0
        calls[peer.name] = call
        extra[peer.name] = own_copies + extra_bytes(call) if cuda else None
    timings = alternate(calls, bench.clock, rounds=bench.rounds, seconds=bench.seconds)
    return {name: (timing, extra[name]) for name, timing in timings.items()}, skipped


def _prepared(peer: Peer, inputs: Inputs) -> tuple[Prepared | None, Outputs, str]:
    """The peer's call and the outputs of a first one, or why there are none."""
    try:
        call = peer.prepare(inputs)
        return call, call(), ""
    except PeerMissing as error:
        return None, (), str(error)
    except Exception as error:
        if peer.name == OWN:
            raise
        # Others' code may raise anything; it must not end the comparison, and its row says what.
        said = str(error).splitlines() or ["no message"]
        return None, (), f"{type(error).__name__}: {said[0]}"
