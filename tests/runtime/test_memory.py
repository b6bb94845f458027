"""`.span` files: round trip, atomic writing, and every refusal."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import fake_manifest, same_state
from safetensors import safe_open

from longspan.bundle import TOKENIZER, WEIGHTS, Manifest
from longspan.errors import BadInput, BadMemory
from longspan.runtime import span_file
from longspan.runtime.memory import DocumentRead, Memory, Origin, describe, load_memory
from longspan.tensors import TensorSpec

STATE = (
    TensorSpec(name="a.conv", shape=(1, 2, 3), dtype="bfloat16"),
    TensorSpec(name="a.ssm", shape=(1, 3, 2), dtype="float32"),
    TensorSpec(name="b.k", shape=(1, 0, 2), dtype="float16"),
    TensorSpec(name="b.position", shape=(1,), dtype="int64"),
)


def manifest_of(**changes: Any) -> Manifest:
    return fake_manifest(5, **{"state": STATE, "files": {WEIGHTS: "a", TOKENIZER: "b"}, **changes})


def memory_of(manifest: Manifest) -> Memory:
    rng = np.random.default_rng(0)
    return Memory(
        state={
            "a.conv": rng.integers(0, 2**16, (1, 2, 3)).astype(np.uint16),
            "a.ssm": rng.standard_normal((1, 3, 2)).astype(np.float32),
            "b.k": np.zeros((1, 0, 2), np.float16),
            "b.position": np.array([2**40]),
        },
        last_logits=rng.standard_normal(5).astype(np.float32),
        documents=(
            DocumentRead(name="büch.txt", sha256="1" * 64, bytes=9, tokens=4),
            DocumentRead(name="two", sha256="2" * 64, bytes=7, tokens=3),
        ),
        origin=Origin.of(manifest, "torch-cpu"),
        created="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture
def manifest() -> Manifest:
    return manifest_of()


@pytest.fixture
def memory(manifest: Manifest) -> Memory:
    return memory_of(manifest)


@pytest.fixture
def path(memory: Memory, tmp_path: Path) -> Path:
    memory.save(tmp_path / "book.span")
    return tmp_path / "book.span"


def test_round_trip(memory: Memory, path: Path, manifest: Manifest) -> None:
    again = load_memory(path, manifest)
    same_state(again.state, memory.state)
    np.testing.assert_array_equal(again.last_logits, memory.last_logits)
    assert again.documents == memory.documents
    assert again.origin == memory.origin
    assert again.created == memory.created
    assert again.tokens == 7
    assert again.nbytes == 2 * 6 + 4 * 6 + 8 + 4 * 5 == memory.nbytes


def test_arrays_can_be_changed_without_touching_anything_else(
    path: Path, manifest: Manifest
) -> None:
    load_memory(path, manifest).state["a.ssm"][:] = 0
    assert load_memory(path, manifest).state["a.ssm"].any()


def test_an_array_that_is_not_contiguous_is_written_in_order(
    memory: Memory, manifest: Manifest, tmp_path: Path
) -> None:
    turned = {**memory.state, "a.ssm": np.asfortranarray(memory.state["a.ssm"])}
    replace(memory, state=turned).save(tmp_path / "x")
    same_state(load_memory(tmp_path / "x", manifest).state, memory.state)


def test_any_safetensors_reader_opens_it(path: Path, memory: Memory) -> None:
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "longspan.span"
        assert file.metadata()["version"] == "1"
        np.testing.assert_array_equal(file.get_tensor("a.ssm"), memory.state["a.ssm"])
        assert file.get_slice("a.conv").get_dtype() == "BF16"


def test_describe(path: Path, manifest: Manifest) -> None:
    facts = describe(path)
    json.dumps(facts)
    assert facts["kind"] == "memory"
    assert facts["tokens"] == 7
    assert facts["family"] == "fake"
    assert facts["model"] == manifest.model_fingerprint()
    assert facts["engine"] == "torch-cpu"
    assert facts["bytes"] == path.stat().st_size
    assert [document["name"] for document in facts["documents"]] == ["büch.txt", "two"]


def test_every_flipped_byte_is_found(path: Path, manifest: Manifest) -> None:
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        with pytest.raises(BadMemory):
            load_memory(path, manifest)


def test_a_truncated_file_is_refused(path: Path, manifest: Manifest) -> None:
    good = path.read_bytes()
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(BadMemory):
            load_memory(path, manifest)
    path.write_bytes(good + b"x")
    with pytest.raises(BadMemory) as refusal:
        load_memory(path, manifest)
    assert str(refusal.value) == (
        f"The memory {path} is damaged: its {len(good) + 1:,} bytes do not match the checksum in "
        "its header. Copy it again, or read the document again."
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "it is too short for the header that it announces"),
        (b"Call me Ishmael.", "it is too short for the header that it announces"),
        (b"\x02" + b"\0" * 7 + b"{}", "its header cannot be read (KeyError)"),
        (b"\x02" + b"\0" * 7 + b"[]", "its header cannot be read (TypeError)"),
        (b"\x02" + b"\0" * 7 + b"{x", "its header cannot be read (JSONDecodeError)"),
        (b"\x02" + b"\0" * 7 + b"\xff\xff", "its header cannot be read (UnicodeDecodeError)"),
    ],
)
def test_a_file_that_is_no_memory(
    tmp_path: Path, manifest: Manifest, content: bytes, found: str
) -> None:
    path = tmp_path / "x.span"
    path.write_bytes(content)
    with pytest.raises(BadMemory) as refusal:
        load_memory(path, manifest)
    assert str(refusal.value) == (
        f"{path} is no memory: {found}. A memory is a .span file, which is made with: longspan "
        "read BUNDLE DOCUMENT --out FILE.span"
    )


def test_a_missing_file(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(BadMemory) as refusal:
        load_memory(tmp_path / "x.span", manifest)
    assert str(refusal.value) == (
        f"The memory {tmp_path / 'x.span'} cannot be read: No such file or directory. Check the "
        "name, or make one with: longspan read BUNDLE DOCUMENT --out FILE.span"
    )


def test_a_newer_version(
    memory: Memory, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(span_file, "VERSION", 2)
        memory.save(tmp_path / "x")
    with pytest.raises(BadMemory) as refusal:
        load_memory(tmp_path / "x", manifest)
    assert str(refusal.value) == (
        f"The memory {tmp_path / 'x'} has version 2; this longspan reads up to 1. Update "
        "longspan, or read the document again with this one."
    )


def test_another_model(path: Path, manifest: Manifest) -> None:
    other = manifest_of(files={WEIGHTS: "c", TOKENIZER: "b"})
    with pytest.raises(BadMemory) as refusal:
        load_memory(path, other)
    one, two = manifest.model_fingerprint()[:12], other.model_fingerprint()[:12]
    assert str(refusal.value) == (
        f"The memory {path} belongs to the fake model {one}, and this bundle is the fake model "
        f"{two}. A memory goes on only with the model that wrote it. Load that model's bundle, or "
        "read the document again with this one."
    )


@pytest.mark.parametrize(("other", "name"), [("c" * 64, "c" * 12), (None, "none")])
def test_another_tokenizer(path: Path, other: str | None, name: str) -> None:
    files = {WEIGHTS: "a"} | ({TOKENIZER: other} if other else {})
    with pytest.raises(BadMemory) as refusal:
        load_memory(path, manifest_of(files=files))
    assert str(refusal.value) == (
        f"The memory {path} was read with the tokenizer b, and this bundle has {name}. The same "
        "text would be other tokens. Load the bundle that wrote it, or read the document again "
        "with this one."
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a.ssm": np.zeros((1, 2, 3), np.float32)}, "a.ssm is float32 [1, 2, 3]"),
        ({"a.conv": np.zeros((1, 2, 3), np.float16)}, "a.conv is float16 [1, 2, 3]"),
        ({"z": np.zeros(1, np.float32)}, "z is float32 [1], and the bundle has no such tensor"),
        ({"a.ssm": None}, "a.ssm is missing, and the bundle has float32 [1, 3, 2]"),
    ],
)
def test_another_state(
    memory: Memory, manifest: Manifest, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    state = {k: v for k, v in {**memory.state, **changed}.items() if v is not None}
    replace(memory, state=state).save(tmp_path / "x")
    with pytest.raises(BadMemory) as refusal:
        load_memory(tmp_path / "x", manifest)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(
        f"The memory {tmp_path / 'x'} does not hold this model's state: "
    )
    assert str(refusal.value).endswith(". Read the document again with this bundle.")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_leaves_what_was_there(
    memory: Memory, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = path.read_bytes()

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput) as refusal:
        replace(memory, created="later").save(path)
    assert str(refusal.value) == (
        f"{path} cannot be written: {os.strerror(code)}. Choose a folder that exists, can be "
        "written to, and has space left."
    )
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["book.span"]


def test_a_missing_folder(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written: there is no folder"):
        memory.save(tmp_path / "no" / "book.span")


def test_the_file_has_the_usual_permissions(path: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == usual


def test_require_writable(tmp_path: Path) -> None:
    span_file.require_writable(tmp_path / "x.span")
    with pytest.raises(BadInput) as refusal:
        span_file.require_writable(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} cannot be written: it is a folder. Name another file."
    )
    with pytest.raises(BadInput) as refusal:
        span_file.require_writable(tmp_path / "no" / "x.span")
    assert str(refusal.value) == (
        f"{tmp_path / 'no' / 'x.span'} cannot be written: there is no folder {tmp_path / 'no'}. "
        "Name another file."
    )


def test_another_file_is_never_replaced(memory: Memory, tmp_path: Path, path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It rained.\n" * 9, encoding="utf-8")
    for write in (span_file.require_writable, memory.save):
        with pytest.raises(BadInput) as refusal:
            write(book)
        assert str(refusal.value) == (
            f"{book} cannot be written: a file that is no memory lies there, and would be lost. "
            "Name another file."
        )
    assert book.read_text(encoding="utf-8") == "It rained.\n" * 9
    (tmp_path / "empty").touch()
    memory.save(tmp_path / "empty")
    path.write_bytes(path.read_bytes()[:-1])
    memory.save(path)
    assert path.read_bytes() == (tmp_path / "empty").read_bytes()


def test_a_device_is_never_replaced(memory: Memory, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match="cannot be written: it is a device or a pipe, and no file"):
        memory.save(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_a_link(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "link.span", tmp_path / "disk" / "book.span"
    link.symlink_to(target)
    memory.save(link)
    memory.save(link)
    assert link.is_symlink()
    assert target.is_file()
