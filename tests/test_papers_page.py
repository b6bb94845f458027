"""benchmarks/papers.py: rows of several runs become tables, verdicts and plots."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import papers
from papers_claims import PAPERS
from papers_kernels import kernel_ratios
from papers_page import page
from papers_plots import draw
from papers_results import Results
from papers_table import CLAIMS

VERSIONS = {
    name: "not installed" for name in ("torch", "triton", "onnxruntime-gpu", "onnxruntime")
} | {"python": "3.11"}
MEASURED = {"peak_bytes": 3 * 2**20, "planned_bytes": 4 * 2**20}
CLAIM = {claim.name: claim for claim in CLAIMS}


def file(*rows: dict[str, Any], command: str = "python benchmarks/papers.py") -> dict[str, Any]:
    run = {"command": command, "device": "a device", "versions": VERSIONS, "seed": 5,
           "budget": "2GiB", "seconds": 7.0}  # fmt: skip
    training = {"samba": {"gpu_minutes": 9.5, "tokens": 10**9, "parameters": 3_600_000, "seed": 0}}
    return {"run": run, "training": training, "rows": list(rows)}


def key(system: str, tokens: int, exact: int, trials: int = 100) -> dict[str, Any]:
    half = trials // 2
    return {
        "what": "recall", "system": system, "task": "passkey", "tokens": tokens, "exact": exact,
        "trials": trials, "read_tokens": 1000,
        "by_depth": [[0.0, max(0, exact - half), half], [1.0, min(exact, half), half]],
    } | MEASURED  # fmt: skip


def verdict(name: str, *rows: dict[str, Any]) -> bool | None:
    found = CLAIM[name].ours(Results.merged([file(*rows)]))
    assert found is not None
    return found.holds


def test_every_claim_stands_on_the_page_without_a_measurement() -> None:
    text = page(Results.merged([]), {}, [])
    for claim in CLAIMS:
        assert claim.says in text
        assert claim.ours(Results.merged([])) is None
    assert text.count("| not measured |") >= len(CLAIMS)
    assert {claim.paper for claim in CLAIMS} == set(PAPERS)
    assert len(CLAIM) == len(CLAIMS)


@pytest.mark.parametrize(("exact", "holds"), [(99, True), (98, False)])
def test_a_bar_is_reached_or_not(exact: int, holds: bool) -> None:
    assert verdict("samba.passkey-64k", key("samba", 65_536, exact)) is holds


def test_the_baseline_is_over_all_lengths() -> None:
    assert verdict("samba.baseline", key("window", 4096, 70), key("window", 65_536, 9))
    assert not verdict("samba.baseline", key("window", 4096, 70), key("window", 65_536, 10))


def test_speeds_are_compared_pair_by_pair() -> None:
    def rows(pair: str, mamba: float, mega: float) -> list[dict[str, Any]]:
        return [
            {"what": "generation", "system": system, "pair": pair, "tokens": 512, "ms_a_byte": ms,
             "engine": "torch"}
            for system, ms in (("mambabyte", mamba), ("megabyte", mega))
        ]  # fmt: skip

    both = [*rows("as trained", 1.0, 2.5), *rows("MegaByte-1, MambaByte-1", 1.0, 2.7)]
    assert not verdict("mambabyte.speed", *both)
    assert verdict("mambabyte.published", *both)


@pytest.mark.parametrize(
    ("anchors", "full", "holds"), [(89, 90, True), (88, 90, False), (90, 9, False), (0, 0, False)]
)
@pytest.mark.parametrize(
    ("claim", "baseline"), [("anllm.accuracy", "llama"), ("anllm.accuracy-full", "anllm-full")]
)
def test_accuracy_is_within_points_of_a_full_cache(
    claim: str, baseline: str, anchors: int, full: int, holds: bool
) -> None:
    rows = key("anllm", 2048, anchors), key(baseline, 2048, full)
    assert verdict(claim, *rows) is holds


def test_later_files_replace_rows_and_rows_name_their_runs() -> None:
    first = file(key("samba", 65_536, 1), key("samba", 262_144, 95), command="one")
    results = Results.merged([first, file(key("samba", 65_536, 100), command="two")])
    text = page(results, {"samba.passkey-256k": "Tried: nothing."}, ["papers-recall.png"])
    assert "100 of 100 (100.0%) | yes | samba: 9.5 GPU-minutes | 2 |" in text
    assert "95 of 100 (95.0%). Tried: nothing. | yes | samba: 9.5 GPU-minutes | 1 |" in text
    assert "| samba | passkey | 262,144 | 95 of 100 | 95.0% | 1 |" in text
    assert "1. `one`: seed 5, a device, python 3.11; budget 2GiB of the whole process" in text
    assert "Largest peak of a process that read trained checkpoints: 3.0 MiB" in text
    assert "![papers-recall](papers-recall.png)" in text


def test_what_is_missing_says_why() -> None:
    row = {"what": "not measured", "system": "conba", "why": "no checkpoint at conba/"}
    assert "- conba (run 1): no checkpoint at conba/" in page(Results.merged([file(row)]), {}, [])


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    other = key("samba", 2048, 90)
    other["by_depth"] = other["by_depth"][:1]
    keys = [other] + [key(name, n, 90) for name in ("samba", "window") for n in (4096, 65_536)]
    state = [
        {"what": "state", "system": name, "tokens": n, "state_bytes": n, "cached_bytes": n}
        | MEASURED
        for name in ("samba", "llama", "mamba")
        for n in (4096, 65_536)
    ]
    found = draw(Results.merged([file(*keys, *state)]), tmp_path)
    names = [path.name for path in found]
    assert names == [
        "papers-recall.png", "papers-recall.svg", "papers-caches.png", "papers-caches.svg",
    ]  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in found)


def test_kernel_ratios_come_from_the_page_of_measurements() -> None:
    rows = list(kernel_ratios(papers.MEASUREMENTS.read_text(encoding="utf-8")))
    assert [row["tokens"] for row in rows] == [16_384, 65_536, 262_144]
    assert all(row["ratio"] > 2 for row in rows)


def test_the_program_writes_the_page_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(file(key("samba", 65_536, 99))))
    (tmp_path / "notes.toml").write_text('"samba.passkey-256k" = "Not tried."\n')
    command = ["papers.py", "--from", "a.json", "--write", "out.md", "--notes", "notes.toml"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    papers.main()
    written = (tmp_path / "out.md").read_text()
    assert "99 of 100 (99.0%) | yes |" in written
    assert "not measured. Not tried. |" in written
    assert "![papers-recall](papers-recall.png)" in written
    assert (tmp_path / "papers-recall.svg").is_file()
    assert "99 of 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "rwkv"], "rwkv was asked for; there are samba, mambabyte"),
        (["--checkpoints", "x"], "--checkpoints needs --data"),
        ([], "nothing to do: give --checkpoints and --data, or --from"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["papers.py", *options])
    with pytest.raises(SystemExit) as stopped:
        papers.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
