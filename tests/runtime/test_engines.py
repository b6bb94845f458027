"""Reading, resuming, saving and asking with a real model, on every engine of the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stand_in import TINY, write_bundle
from tokenizers_ import SOURCE, byte_level, save

from longspan.bundle import TOKENIZER, WEIGHTS, Bundle, file_sha256, open_bundle, write_manifest
from longspan.engines import Engine
from longspan.errors import BadMemory
from longspan.runtime.runtime import Runtime, load
from longspan.tensors import DType

TEXT = SOURCE[:3000]
# Two cuts of the same float32 sums, some 1,500 steps deep; bfloat16 tails are stored rounded.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
ENGINES: tuple[Engine, ...] = ("torch-cpu", "onnx-cpu")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny Samba with our tokenizer."""
    dtype: DType = request.param
    made = write_bundle(
        tmp_path_factory.mktemp("engines") / "bundle", replace(TINY, vocab_size=700), dtype
    )
    digest = file_sha256(save(byte_level(), made.path / TOKENIZER))
    files = {**made.manifest.files, TOKENIZER: digest}
    write_manifest(made.path, replace(made.manifest, files=files))
    return open_bundle(made.path)


def open_runtime(bundle: Bundle, engine: Engine, chunk_tokens: int) -> Runtime:
    backend: Any = engine.removesuffix("-cpu")
    return load(
        bundle, budget="64GiB", device="cpu", backend=backend, chunk_tokens=chunk_tokens, threads=1
    )


def floats(array: NDArray[Any]) -> NDArray[Any]:
    """Bfloat16, held as uint16, as float32; anything else as it is."""
    wide = array.astype(np.uint32) << 16
    return wide.view(np.float32) if array.dtype == np.uint16 else array


def close(one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]], dtype: DType) -> None:
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            floats(array), floats(two[name]), rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_reading_ends_where_a_whole_one_does(
    bundle: Bundle, engine: Engine, tmp_path: Path
) -> None:
    checkpoint, left = tmp_path / "c", [3]

    def stop(progress: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with open_runtime(bundle, engine, 100) as runtime:
        whole = runtime.read(TEXT)
        with pytest.raises(KeyboardInterrupt):
            runtime.read(TEXT, checkpoint=checkpoint, on_progress=stop)
    with open_runtime(bundle, engine, 100) as runtime:
        resumed = runtime.read(TEXT, checkpoint=checkpoint, on_notice=lambda message: None)
        assert runtime.measured.prefill_tokens == whole.tokens - 300
    with open_runtime(bundle, engine, 37) as runtime:
        otherwise = runtime.read(TEXT)
    dtype = bundle.manifest.dtype
    for other in (resumed, otherwise):
        assert other.documents == whole.documents
        close(other.state, whole.state, dtype)
        close({"": other.last_logits}, {"": whole.last_logits}, dtype)


@pytest.mark.parametrize(("writes", "goes_on"), [ENGINES, ENGINES[::-1]])
def test_a_memory_goes_on_on_another_engine(
    bundle: Bundle, writes: Engine, goes_on: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "half.span"
    at = TEXT.index(" the ", 1500)
    with open_runtime(bundle, writes, 64) as runtime:
        runtime.read(TEXT[:at]).save(path)
        whole = runtime.read(TEXT)
        expected = runtime.ask(whole, "def add", stop=(), max_tokens=8).read()
    with open_runtime(bundle, goes_on, 50) as runtime:
        half = runtime.open(path)
        assert half.origin.engine == writes
        both = runtime.read(TEXT[at:], memory=half)
        assert both.origin.engine == goes_on
        answer = runtime.ask(both, "def add", stop=(), max_tokens=8)
        if bundle.manifest.dtype == "float32":
            assert answer.read() == expected
    close(both.state, whole.state, bundle.manifest.dtype)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_read_state_asked_at_once_is_the_logits_of_one_pass(
    bundle: Bundle, engine: Engine
) -> None:
    with open_runtime(bundle, engine, 64) as runtime:
        memory = runtime.read(TEXT)
        logits = runtime.logits(runtime.tokenizer.encode(TEXT))
    assert logits.shape == (memory.tokens, 700)
    close({"": memory.last_logits}, {"": logits[-1]}, bundle.manifest.dtype)


def test_a_memory_of_other_weights_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with open_runtime(bundle, "onnx-cpu", 64) as runtime:
        runtime.read("some text").save(tmp_path / "x.span")
    files = {**bundle.manifest.files, WEIGHTS: "0" * 64}
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with (
        open_runtime(other, "onnx-cpu", 64) as runtime,
        pytest.raises(BadMemory, match="belongs to the samba model"),
    ):
        runtime.open(tmp_path / "x.span")
