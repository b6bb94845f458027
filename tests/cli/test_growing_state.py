"""The commands with a model whose state grows: lengths are counted, and refused in time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longspan.bundle import TOKENIZER, Bundle, file_sha256, open_bundle, write_manifest
from longspan.runtime.plan_entries import RESERVE_TOKENS
from tests.runtime.stand_in import CACHED, write_bundle
from tests.runtime.tokenizers_ import SOURCE, byte_level, save

TEXT = SOURCE[:2000]
TOKENS = len(byte_level().encode(TEXT).ids)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with caches and a tokenizer."""
    path = tmp_path_factory.mktemp("cached") / "bundle"
    manifest = write_bundle(path, replace(CACHED, vocab_size=700)).manifest
    tokenizer = file_sha256(save(byte_level(), path / TOKENIZER))
    write_manifest(path, replace(manifest, files={**manifest.files, TOKENIZER: tokenizer}))
    return open_bundle(path)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def command(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run longspan on the CPU in a process of its own, and check its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "longspan", *map(str, arguments), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def facts(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """The JSON object that a command prints."""
    found: dict[str, Any] = json.loads(command(*arguments, "--json", status=status).stdout)
    return found


def test_plan_fits_a_length(bundle: Bundle) -> None:
    arguments = ("plan", bundle.path, "--budget", "512MiB", "--tokens", "8K", "--fit")
    found = facts(*arguments)
    assert found["capacity"] == 8192 + RESERVE_TOKENS
    assert found["longest_tokens"] > 8192
    names = [item["name"] for item in found["items"]]
    assert "cache of 9,216 entries, 3 copies" in names
    longer = str(2 * found["longest_tokens"])
    assert not facts(*arguments[:-2], longer, "--fit", status=3)["fits"]


def test_a_document_is_read_and_asked(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    span = tmp_path / "book.span"
    report = facts("read", bundle.path, book, "--out", span, "--budget", "512MiB")
    assert report["tokens"] == TOKENS
    assert span.stat().st_size > TOKENS * bundle.manifest.cache_entry_bytes
    asked = facts(
        "ask", bundle.path, "What?", "--memory", span, "--budget", "512MiB", "--max-tokens", "2000"
    )
    (answer,) = asked["answers"]
    assert answer["finish"] in ("stop", "length")
    from_document = facts("ask", bundle.path, "What?", "--document", book, "--max-tokens", "3")
    assert answer["answer"].startswith(from_document["answers"][0]["answer"])


def test_a_document_that_is_too_long_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(SOURCE * 40, encoding="utf-8")
    tokens = 40 * len(byte_level().encode(SOURCE).ids)
    out = tmp_path / "never.span"
    done = command(
        "read", bundle.path, tmp_path / "long.txt", "--out", out, "--budget", "256MiB", status=3
    )
    assert f"A copy of the cache has {tokens:,} entries for the document" in done.stderr
    assert "This budget holds documents of up to " in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "long.txt"]


def test_measure_and_verify(bundle: Bundle) -> None:
    arguments = ("measure", bundle.path, "--budget", "512MiB", "--tokens", "100")
    (run,) = facts(*arguments)["runs"]
    assert run["tokens"] == 100
    assert run["decode_tokens_per_second"] > 0
    assert facts("verify", bundle.path)["passed"]


def test_info(bundle: Bundle) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "longspan", "info", str(bundle.path), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout)["cache_entry_bytes"] == bundle.manifest.cache_entry_bytes
