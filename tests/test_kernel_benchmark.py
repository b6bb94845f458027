"""benchmarks/kernels.py: arithmetic, peers at small sizes, and what it prints and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import kernel_runs
from attention_cases import (
    anchor_case,
    causal_pairs,
    full_case,
    full_step_case,
    seen_through_anchors,
    window_case,
)
from fused_cases import add_norm_case, gated_norm_case, swiglu_case
from kernel_case import Case, Draw, Inputs
from kernel_cases import CASES, LARGE_STEPS, conv_case, norm_case, scan_case, ssd_case
from kernel_peers import FLEX_BLOCK, PEERS, band_blocks
from kernel_runs import Bench, Error, Row, run_case
from kernels import measured, parse, tables
from peer import Peer, PeerMissing, import_inside
from report import command_line, write_section
from roofline import draw, points, style
from timing import LEAST_ROUNDS, WARM_UPS, Ceilings, Timing, alternate, measure_ceilings

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CEILINGS = Ceilings(copy_bytes_per_second=1e9, matmul_flops_per_second=1e12)
SMALL: dict[str, Case] = {
    "ssd": ssd_case("ssd", heads=2, width=8, states=4),
    "ssd_large_steps": ssd_case("ssd_large_steps", heads=2, width=8, states=4, steps=LARGE_STEPS),
    "selective_scan": scan_case("selective_scan", width=8, states=4),
    "mamba2_against_mamba1": ssd_case("mamba2_against_mamba1", heads=3, width=8, states=4),
    "window_attention": window_case("window_attention", heads=4, kv_heads=2, width=8, window=6),
    "anchor_attention": anchor_case("anchor_attention", heads=2, width=8, every=5),
    "full_attention": full_case("full_attention", heads=4, kv_heads=2, width=8),
    "full_attention_step": full_step_case("full_attention_step", heads=4, kv_heads=2, width=8),
    "conv": conv_case("conv", width=8),
    "norm": norm_case("norm", width=8),
    "add_norm": add_norm_case("add_norm", width=8),
    "gated_norm": gated_norm_case("gated_norm", width=8),
    "swiglu": swiglu_case("swiglu", width=8),
}
# Those that need a GPU, or a package that is no dependency.
ELSEWHERE = (
    "state-spaces/mamba", "flash-linear-attention", "torch flex_attention", "causal-conv1d",
)  # fmt: skip


class FakeClock:
    """A call takes as long as it says, and is run."""

    def __init__(self) -> None:
        self.called: list[Any] = []

    def milliseconds(self, call: Callable[[], Any]) -> float:
        self.called.append(call())
        return float(len(self.called))


def bench(error_tokens: int | None = 17) -> Bench:
    return Bench(
        draw=Draw(device="cpu", dtype=torch.float32),
        clock=FakeClock(),
        ceilings=CEILINGS,
        rounds=4,
        seconds=60.0,
        error_tokens=error_tokens,
    )


def test_calls_take_turns_and_medians_leave_the_warm_ups_out() -> None:
    clock = FakeClock()
    timings = alternate({"a": lambda: "a", "b": lambda: "b"}, clock, rounds=5, seconds=60.0)
    assert clock.called == ["a", "b"] * (WARM_UPS + 5)
    first = 2 * WARM_UPS + 1
    times = [float(first + 2 * i) for i in range(5)]
    assert timings["a"] == Timing(median_ms=times[2], least_ms=times[0], most_ms=times[4], rounds=5)


def test_rounds_end_with_their_time_but_some_are_made() -> None:
    timings = alternate({"a": lambda: None}, FakeClock(), rounds=50, seconds=0.0)
    assert timings["a"].rounds == LEAST_ROUNDS


def test_the_floor_is_the_larger_of_two() -> None:
    assert CEILINGS.floor(2e6, 1e9) == (2.0, "memory")
    assert CEILINGS.floor(1e6, 3e9) == (3.0, "matrix products")


def test_ceilings_count_a_copy_twice_and_two_operations_a_product() -> None:
    found = measure_ceilings(
        "cpu", torch.float32, clock=FakeClock(), copy_bytes=1000, width=10, rounds=3
    )
    # The clock says 5, 7 and 9 for the copies, 6, 8 and 10 for the products.
    assert found.copy_bytes_per_second == pytest.approx(2 * 1000 / 7e-3)
    assert found.matmul_flops_per_second == pytest.approx(2 * 10**3 / 8e-3)


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 23])
def test_pairs_of_attention_are_counted(tokens: int) -> None:
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    causal = column <= row
    assert causal_pairs(tokens) == int(causal.sum())
    assert causal_pairs(tokens, 6) == int((causal & (column > row - 6)).sum())
    anchor = torch.arange(1, tokens + 1) % 5 == 0
    segment = anchor.cumsum(0) - anchor.int()
    own = segment[:, None] == segment[None, :]
    seen = causal & (own | (anchor[None, :] & ~anchor[:, None]))
    assert seen_through_anchors(tokens, 5) == int(seen.sum())


@pytest.mark.parametrize(("tokens", "window"), [(512, 128), (512, 200), (640, 384), (384, 1)])
def test_blocks_of_a_band(tokens: int, window: int) -> None:
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    band = (column <= row) & (column > row - window)
    count = tokens // FLEX_BLOCK
    tiles = band.view(count, FLEX_BLOCK, count, FLEX_BLOCK).transpose(1, 2).flatten(2)
    part, whole = band_blocks(tokens, window)
    assert torch.equal(whole, tiles.all(-1))
    assert torch.equal(part, tiles.any(-1) & ~tiles.all(-1))


@pytest.mark.parametrize("op", SMALL)
def test_each_op_and_its_peers_compute_the_same(op: str) -> None:
    """The adapters: what runs here agrees with float64, and what does not is named."""
    rows = list(run_case(SMALL[op], PEERS[op], bench(), [13]))
    assert [row.who for row in rows] == ["longspan", *(peer.name for peer in PEERS[op])]
    for row, peer in zip(rows[1:], PEERS[op], strict=True):
        assert (row.error is None) == (not peer.same or row.skipped is not None)
    for row in rows:
        if row.who.startswith(ELSEWHERE):
            assert row.skipped
            continue
        assert row.skipped is None
        assert row.timing is not None
        assert row.timing.rounds == 4
        for error in (row.error, *row.state_errors):
            assert error is None or error.relative < 2e-6
    assert rows[0].error is not None
    assert bool(rows[0].state_errors) == (op not in ("norm", "gated_norm", "swiglu"))


def test_every_op_has_peers() -> None:
    assert set(CASES) == set(PEERS) == set(SMALL)


def _raise(error: Exception) -> Any:
    raise error


def test_peers_that_are_missing_or_fail_are_named() -> None:
    def missing(inputs: Inputs) -> Any:
        return _raise(PeerMissing("it is not installed"))

    def broken(inputs: Inputs) -> Any:
        return lambda: _raise(RuntimeError("it broke\nand more"))

    peers = (Peer(name="missing", prepare=missing), Peer(name="broken", prepare=broken))
    own, *others = run_case(SMALL["norm"], peers, bench(), [8])
    assert own.skipped is None
    assert [row.skipped for row in others] == ["it is not installed", "RuntimeError: it broke"]
    assert all(row.timing is None and row.error is None for row in others)


def test_a_call_may_overwrite_what_it_is_given() -> None:
    case = SMALL["norm"]

    def call(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        outputs = case.call(inputs)
        inputs["x"].zero_()
        return outputs

    overwriting = replace(case, call=call)
    own, other = run_case(overwriting, PEERS["norm"], bench(), [8])
    for row in (own, other):
        assert row.error is not None
        assert row.error.relative < 2e-6


def test_a_failure_of_longspan_is_not_hidden() -> None:
    broken = replace(SMALL["norm"], call=lambda inputs: _raise(RuntimeError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        list(run_case(broken, (), bench(), [8]))


def test_an_error_shows() -> None:
    found = Error.between(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]).double())
    assert found == Error(largest=0.5, relative=0.1)
    nothing = Error.between(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert nothing.largest != nothing.largest


def test_packages_are_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "needs_a_gpu" / "ops"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise RuntimeError('no extension')")
    (inner / "__init__.py").write_text("")
    (inner / "plain.py").write_text("answer = 42")
    (inner / "lost.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_inside("needs_a_gpu.ops.plain", "needs_a_gpu").answer == 42
    with pytest.raises(PeerMissing, match="No module named 'nothing_of_this_name'"):
        import_inside("needs_a_gpu.ops.lost", "needs_a_gpu")
    with pytest.raises(PeerMissing, match="not_there is not installed"):
        import_inside("not_there.ops", "not_there")


def run_of(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "command": "python benchmarks/kernels.py --op norm",
        "device": "a card",
        "versions": dict.fromkeys(
            ("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime"), "1"
        ),
        "dtype": "float32",
        "ceilings": asdict(CEILINGS),
        "rows": [asdict(row) for row in rows],
    }


def test_tables_hold_times_beside_errors_and_name_who_did_not_run(tmp_path: Path) -> None:
    rows = list(run_case(SMALL["conv"], PEERS["conv"], bench(), [8, 16]))
    run = json.loads(json.dumps(run_of(rows)))
    assert [Row.from_json(row) for row in run["rows"]] == rows
    ((key, text),) = tables(run)
    assert key == "Kernel conv: float32 on a card"
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 4
    own = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert own[:3] == ["8", "longspan", f"{rows[0].timing.median_ms:.3f}"]  # type: ignore[union-attr]
    # 2 x 8 tokens x 8 channels x 4 bytes at 1 GB/s.
    assert own[4] == f"{2 * 8 * 8 * 4 / 1e6:.3f}"
    assert own[6] == "1.00"
    assert "Not run: causal-conv1d (causal_conv1d cannot be imported" in text
    file = tmp_path / "measurements.md"
    for _ in range(2):
        write_section(file, key, text)
    assert file.read_text().count("### Kernel: conv") == 1


def test_commands_name_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "--op ssd --peer-path a --json --peer-path b --write m.md --plot docs --rounds 2"
    monkeypatch.setattr(sys, "argv", ["kernels.py", *given.split()])
    assert command_line("kernels.py") == "python benchmarks/kernels.py --op ssd --json --rounds 2"


def test_rows_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="a row has the keys"):
        Row.from_json({"op": "norm"})


def test_the_plot(tmp_path: Path) -> None:
    rows = list(run_case(SMALL["conv"], PEERS["conv"], bench(), [8, 1024]))
    data = [asdict(row) for row in rows]
    found = points(data)
    assert list(found) == ["conv, 8", "conv, 1K"]
    assert list(found["conv, 8"]) == ["longspan", "torch conv1d, silu"]
    assert found["conv, 8"]["longspan"] == pytest.approx(
        data[0]["timing"]["median_ms"] / data[0]["floor_ms"]
    )
    png, svg = draw(data, "a card", tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    with pytest.raises(ValueError, match="there is no time to draw"):
        draw([{**row, "timing": None} for row in data], "a card", tmp_path)


def test_implementations_look_different() -> None:
    styles = [style(place) for place in range(20)]
    assert len({(each["color"], each["marker"]) for each in styles}) == 20


def program(*options: str) -> subprocess.CompletedProcess[str]:
    """The program as somebody runs it: kernels that are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(BENCHMARKS.parent)
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / "kernels.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_the_program_prints_one_object(tmp_path: Path) -> None:
    done = program(
        "--device", "cpu", "--op", "norm", "--tokens", "16", "--dtype", "float32", "--rounds", "1",
        "--error-tokens", "8", "--json", "--write", str(tmp_path / "m.md"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert set(run) == {"command", "device", "versions", "dtype", "ceilings", "rows"}
    assert [row["who"] for row in run["rows"]] == ["longspan", "torch rms_norm, cast"]
    assert "### Kernel: norm in float32" in (tmp_path / "m.md").read_text()


def test_resources_without_a_gpu() -> None:
    done = program("--resources", "--op", "norm")
    assert done.returncode == 0, done.stderr
    assert "sm_90: warps / registers / stack / KiB" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("| norm")]
    assert len(table) == 2
    for line in table:
        *_, large, small = [cell.strip() for cell in line.strip("|").split("|")]
        for cell in (large, small):
            warps, registers, stack, shared = cell.split(" / ")
            assert int(warps) in (1, 2, 4, 8, 16)
            assert 16 <= int(registers) <= 255
            assert int(stack) == 0
            assert 0.0 <= float(shared) <= 99.0


def test_an_interrupted_run_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_case

    def cut_short(case: Case, peers: Any, bench: Bench, lengths: Any) -> Any:
        yield from whole(SMALL["norm"], (), bench, [13])
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_runs, "run_case", cut_short)
    options = parse(["--op", "norm,conv", "--device", "cpu", "--dtype", "float32", "--rounds", "1"])
    assert [row["op"] for row in measured(options)["rows"]] == ["norm"]
    assert "interrupted: the 1 rows until here are kept" in capsys.readouterr().err
