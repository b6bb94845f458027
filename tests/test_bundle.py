"""Opening a bundle: every damage to its files is refused with a message, whatever it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import longspan
from longspan.bundle import MANIFEST, WEIGHTS, open_bundle
from longspan.errors import BadBundle
from longspan.runtime.verify import check_files

FILES = [WEIGHTS, "model.onnx", "model.cpu.onnx", "tokenizer.json"]
AGAIN = "Copy the bundle again, or export the checkpoint again."
ODD: tuple[Any, ...] = (None, True, -1, 0, 0.5, 2**70, "x", "", [], {}, ["x"], {"x": 1})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(longspan.builtin_bundle(), tmp_path / "bundle")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BadBundle) as refusal:
        open_bundle(bundle)
    assert str(refusal.value) == (
        f"{bundle} lacks {name}, which its manifest names. Export the checkpoint again."
    )


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_weights_that_are_cut_short(bundle: Path, kept: int) -> None:
    weights = bundle / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BadBundle) as refusal:
        open_bundle(bundle)
    assert str(refusal.value).startswith(f"{weights} has ")
    assert str(refusal.value).endswith(AGAIN)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_by_its_checksum(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    check_files(open_bundle(bundle))
    (bundle / name).write_bytes(data)
    with pytest.raises(BadBundle) as refusal:
        check_files(open_bundle(bundle))
    assert str(refusal.value).startswith(f"{bundle / name} is not what was exported: its SHA-256 ")
    assert str(refusal.value).endswith(AGAIN)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_file_that_may_not_be_read(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return allowed(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadBundle) as refusal:
        open_bundle(bundle)
    assert str(refusal.value) == (
        f"{bundle / name} cannot be read: Permission denied. Check the file's permissions."
    )


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, itself first; of a list the first few."""
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node[:3]):
            yield from places(value, (*path, i))


def holder(node: Any, place: tuple[Any, ...]) -> Any:
    """What holds the value at a place."""
    for key in place[:-1]:
        node = node[key]
    return node


MANIFEST_TEXT = (longspan.builtin_bundle() / MANIFEST).read_text(encoding="utf-8")
PLACES = list(places(json.loads(MANIFEST_TEXT)))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), odd=st.sampled_from(ODD), drop=st.booleans())
def test_any_manifest_is_read_or_refused(
    bundle: Path, place: tuple[Any, ...], odd: Any, drop: bool
) -> None:
    data: Any = json.loads(MANIFEST_TEXT)
    if not place:
        data = odd
    elif drop:
        del holder(data, place)[place[-1]]
    else:
        holder(data, place)[place[-1]] = odd
    (bundle / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with suppress(BadBundle):
        assert open_bundle(bundle).manifest.state_bytes is not None


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("eos",), "2", "TypeError: eos is '2', and must be int | None"),
        (("parameters",), 1.5, "TypeError: parameters is 1.5, and must be int"),
        (("prompt", "stop"), "\n", "TypeError: stop is '\\n', and must be tuple[str, ...]"),
        (("prompt", "template"), None, "TypeError"),
        (("config", "d_model"), "x", "TypeError"),
        (("config", "tied"), 1, "TypeError: tied is 1, and must be bool"),
        (("config", "layers", 0, "d_inner"), True, "TypeError: d_inner is True, and must be int"),
        (("config", "layers"), [], "ValueError: state is not that of the layers in config"),
        (("state", 0, "shape", 1), 4, "ValueError: state is not that of the layers in config"),
        (("chunk_bytes", "onnx-cpu", 0, "fixed"), 0.5, "TypeError: fixed is 0.5, and must be int"),
        (("chunk_bytes", "onnx-cpu", 0, "block_tokens"), 0, "ValueError: block_tokens is 0"),
        (("chunk_bytes", "onnx-cpu"), [], "ValueError: chunk_bytes of onnx-cpu has 0 entries"),
        (("files", "model.onnx"), None, "TypeError: files is "),
    ],
)
def test_what_a_manifest_may_not_hold(
    bundle: Path, place: tuple[Any, ...], value: Any, said: str
) -> None:
    data = json.loads(MANIFEST_TEXT)
    holder(data, place)[place[-1]] = value
    (bundle / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BadBundle) as refusal:
        open_bundle(bundle)
    assert str(refusal.value).startswith(f"{bundle / MANIFEST} cannot be read ({said}")
    assert str(refusal.value).endswith("Export the checkpoint again.")


def test_a_manifest_from_before_there_were_caches_opens(bundle: Path) -> None:
    now = open_bundle(bundle).manifest
    data = json.loads(MANIFEST_TEXT)
    for spec in data["state"]:
        del spec["counter"]
    for items in data["chunk_bytes"].values():
        for item in items:
            for name in {*item} - {"fixed", "per_token", "per_pair"}:
                del item[name]
    (bundle / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    then = open_bundle(bundle).manifest
    assert then.cache_entry_bytes == 0
    assert then.chunk_peak_bytes("onnx-cpu", 16) == now.chunk_peak_bytes("onnx-cpu", 16)
