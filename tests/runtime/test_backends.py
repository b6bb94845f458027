"""Every engine computes the same function, and hands its state to every other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stand_in import TINY, random_decoder, write_bundle

from longspan.bundle import WEIGHTS, Bundle, Manifest, open_bundle
from longspan.engines import Engine
from longspan.errors import BadBundle, BadInput, BudgetExceeded, MissingExtra
from longspan.runtime.backends import Backend, open_backend
from longspan.runtime.backends.choice import EngineChoice, Installed, choose_engine, decide
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.nvidia import CudaFound
from longspan.tensors import DType

CPU: list[Engine] = ["onnx-cpu", "torch-cpu"]
CUDA = [
    pytest.param("onnx-cuda", marks=pytest.mark.gpu),
    pytest.param("torch-cuda", marks=pytest.mark.gpu),
]
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, 40)
# float32 sums in another order; on CUDA also another exp, over 40 tokens and a state.
TOLERANCE = {"cpu": 2e-5, "cuda": 1e-3}


class Bundles:
    """One bundle for each dtype, written when a test first wants it: tracing takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, dtype: DType) -> Bundle:
        path = self.folder / dtype
        return open_bundle(path) if path.is_dir() else write_bundle(path, dtype=dtype)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


def opened(bundle: Bundle, engine: Engine) -> Backend:
    return open_backend(bundle, engine=engine, memory_limit_bytes=None)


def oracle(dtype: DType) -> NDArray[Any]:
    """Logits float64 [L, V] of the decoder in float64, over the weights as they are stored."""
    decoder = random_decoder(TINY, dtype).double()
    decoder.compute = torch.float64
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in decoder.new_state().items()
    }
    ids = torch.from_numpy(TOKENS)[None]
    logits, _ = decoder(ids, torch.arange(len(TOKENS)), state)
    result: NDArray[Any] = logits[0].numpy()
    return result


@pytest.mark.parametrize("engine", [*CPU, *CUDA])
def test_all_logits_are_those_of_the_decoder_in_float64(bundles: Bundles, engine: Engine) -> None:
    backend = opened(bundles["float32"], engine)
    keep = range(len(TOKENS))
    logits, _ = backend.forward(TOKENS, backend.new_state(), keep=keep)
    assert logits.dtype == np.float32
    assert logits.shape == (len(TOKENS), TINY.vocab_size)
    bound = TOLERANCE[engine.split("-")[1]]
    np.testing.assert_allclose(logits, oracle("float32"), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", CPU)
def test_low_precision_weights_are_computed_with_in_float32_on_cpus(
    bundles: Bundles, engine: Engine, dtype: DType
) -> None:
    backend = opened(bundles[dtype], engine)
    logits, _ = backend.forward(TOKENS[:1], backend.new_state(), keep=[0])
    # All that is rounded: convolution inputs, keys and values, as the state holds them.
    bound = {"bfloat16": 1e-2, "float16": 1e-3}[dtype]
    np.testing.assert_allclose(logits, oracle(dtype)[:1], rtol=bound, atol=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("engine", ["onnx-cuda", "torch-cuda"])
def test_low_precision_on_cuda_stays_near_the_cpu(
    bundles: Bundles, engine: Engine, dtype: DType
) -> None:
    backend = opened(bundles[dtype], engine)
    logits, _ = backend.forward(TOKENS, backend.new_state(), keep=range(len(TOKENS)))
    expected = oracle(dtype)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    # Every activation is rounded to 2^-8 or 2^-11, over four layers and 40 tokens.
    assert error < {"bfloat16": 8e-2, "float16": 2e-2}[dtype]


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7] * 5 + [5], [30, 1, 9]], ids=str)
@pytest.mark.parametrize("engine", [*CPU, *CUDA])
def test_chunks_give_the_logits_of_one_pass(
    bundles: Bundles, engine: Engine, cuts: list[int]
) -> None:
    backend = opened(bundles["float32"], engine)
    state, start = backend.new_state(), 0
    for length in cuts:
        logits, state = backend.forward(TOKENS[start : start + length], state, keep=[-1])
        start += length
    bound = TOLERANCE[engine.split("-")[1]]
    np.testing.assert_allclose(logits[0], oracle("float32")[-1], rtol=bound, atol=bound)


@pytest.mark.parametrize("engine", [*CPU, *CUDA])
def test_nothing_kept_gives_no_logits(bundles: Bundles, engine: Engine) -> None:
    backend = opened(bundles["float32"], engine)
    logits, _ = backend.forward(TOKENS, backend.new_state(), keep=[])
    assert logits.shape == (0, TINY.vocab_size)


@pytest.mark.parametrize("engine", [*CPU, *CUDA])
def test_a_state_stays_as_it_was(bundles: Bundles, engine: Engine) -> None:
    backend = opened(bundles["float32"], engine)
    _, first = backend.forward(TOKENS[:9], backend.new_state(), keep=[])
    before = backend.to_arrays(first)
    once, second = backend.forward(TOKENS[9:20], first, keep=[-1])
    for _ in range(3):
        _, second = backend.forward(TOKENS[:16], second, keep=[])
    again, _ = backend.forward(TOKENS[9:20], first, keep=[-1])
    np.testing.assert_array_equal(once, again)
    for name, value in backend.to_arrays(first).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("engine", [*CPU, *CUDA])
def test_arrays_are_copies(bundles: Bundles, engine: Engine) -> None:
    backend = opened(bundles["float32"], engine)
    _, state = backend.forward(TOKENS[:9], backend.new_state(), keep=[])
    arrays = backend.to_arrays(state)
    copy = backend.from_arrays(arrays)
    for value in arrays.values():
        value[...] = 0
    expected, _ = backend.forward(TOKENS[9:], state, keep=[-1])
    found, _ = backend.forward(TOKENS[9:], copy, keep=[-1])
    np.testing.assert_array_equal(found, expected)


PAIRS = [
    ("onnx-cpu", "torch-cpu"),
    ("torch-cpu", "onnx-cpu"),
    pytest.param("torch-cuda", "onnx-cpu", marks=pytest.mark.gpu),
    pytest.param("onnx-cpu", "torch-cuda", marks=pytest.mark.gpu),
    pytest.param("onnx-cuda", "torch-cuda", marks=pytest.mark.gpu),
    pytest.param("torch-cuda", "onnx-cuda", marks=pytest.mark.gpu),
    pytest.param("onnx-cuda", "torch-cpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_state_goes_on_in_another_engine(
    bundles: Bundles, first: Engine, second: Engine, dtype: DType
) -> None:
    bundle = bundles[dtype]
    reader, writer = opened(bundle, first), opened(bundle, second)
    _, state = reader.forward(TOKENS[:23], reader.new_state(), keep=[])
    arrays = reader.to_arrays(state)
    assert {name: value.shape for name, value in arrays.items()} == {
        spec.name: spec.shape for spec in bundle.manifest.state
    }
    moved = writer.from_arrays(arrays)
    for name, value in writer.to_arrays(moved).items():
        np.testing.assert_array_equal(value, arrays[name])
    found, _ = writer.forward(TOKENS[23:], moved, keep=[-1])
    expected, _ = reader.forward(TOKENS[23:], state, keep=[-1])
    on_cuda = "cuda" in first + second
    bound = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 2e-2}[dtype] if on_cuda else 2e-5
    # On CPUs conv tails, keys and values alone are rounded, the same way on both sides.
    if not on_cuda and dtype != "float32":
        bound = 2e-3
    scale = max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(found - expected).max()) <= bound * scale


def test_the_onnx_backend_on_the_cpu_imports_no_torch(bundles: Bundles) -> None:
    code = (
        "import sys, numpy as np\n"
        "from longspan.bundle import open_bundle\n"
        "from longspan.runtime.backends import open_backend\n"
        "from longspan.runtime.backends.choice import choose_engine\n"
        "choice = choose_engine(device='cpu')\n"
        "backend = open_backend(open_bundle(sys.argv[1]), engine=choice.engine,"
        " memory_limit_bytes=None)\n"
        "backend.forward(np.arange(9), backend.new_state(), keep=[-1])\n"
        "sys.exit(', '.join({'torch', 'onnx', 'triton'} & sys.modules.keys()) or 0)\n"
    )
    path = str(bundles["float32"].path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", CPU)
def test_weights_that_do_not_match_are_refused(
    bundles: Bundles, tmp_path: Path, engine: Engine
) -> None:
    shutil.copytree(bundles["float32"].path, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    whole = (bundle.path / WEIGHTS).read_bytes()
    if engine == "onnx-cpu":
        (bundle.path / "model.cpu.onnx").write_bytes(b"no graph")
        message = "cannot load .*model.cpu.onnx: .*Export the checkpoint again"
    else:
        (bundle.path / WEIGHTS).write_bytes(whole.replace(b"layers.0.norm", b"layers.0.morn"))
        message = "does not hold the tensors that the manifest describes: .*layers.0.norm.weight"
    with pytest.raises(BadBundle, match=f"(?s){message}"):
        opened(bundle, engine)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["onnx-cuda", "torch-cuda"])
def test_the_memory_limit_holds(bundles: Bundles, engine: Engine) -> None:
    """In a process of its own, since allocators keep what they had."""
    code = (
        "import sys, numpy as np\n"
        "from longspan.bundle import open_bundle\n"
        "from longspan.errors import BudgetExceeded\n"
        "from longspan.runtime.backends import open_backend\n"
        "from longspan.runtime.baseline import measure_baseline\n"
        "from longspan.runtime.device_memory import memory_now\n"
        "from longspan.runtime.plan_items import ONNX_CUDA_BYTES\n"
        "engine = sys.argv[2]\n"
        "limit = measure_baseline(engine) + 160 * 2**20\n"
        "limit += ONNX_CUDA_BYTES if engine == 'onnx-cuda' else 0\n"
        "bundle = open_bundle(sys.argv[1])\n"
        "backend = open_backend(bundle, engine=engine, memory_limit_bytes=limit)\n"
        "_, state = backend.forward(np.arange(16), backend.new_state(), keep=[-1])\n"
        "try:\n"
        "    backend.forward(np.zeros(300_000, np.int64), state, keep=range(300_000))\n"
        "except BudgetExceeded as error:\n"
        "    print('refused', error)\n"
        "held = memory_now('cuda')\n"
        "print(held, limit)\n"
        "sys.exit(0 if held.bytes <= limit + 32 * 2**20 else 1)\n"
    )
    arguments = [sys.executable, "-c", code, str(bundles["float32"].path), engine]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("refused A chunk of 300000 tokens needs more memory"), done.stdout


ALL = Installed(torch=True, torch_cuda=True, triton=True, onnx_cuda=True)
NO_TORCH = Installed(torch=False, torch_cuda=False, triton=False, onnx_cuda=True)
CPU_TORCH = Installed(torch=True, torch_cuda=False, triton=True, onnx_cuda=False)
NOTHING = Installed(torch=False, torch_cuda=False, triton=False, onnx_cuda=False)
H100 = CudaFound(name="H100", looked_for="a device through libcuda.so.1")
NO_GPU = CudaFound(name=None, looked_for="the driver's library libcuda.so.1, which is missing")


@pytest.mark.parametrize(
    ("device", "backend", "installed", "cuda", "engine"),
    [
        ("auto", "auto", ALL, H100, "torch-cuda"),
        ("auto", "auto", NO_TORCH, H100, "onnx-cuda"),
        ("auto", "auto", CPU_TORCH, H100, "onnx-cpu"),
        ("auto", "auto", ALL, NO_GPU, "onnx-cpu"),
        ("auto", "torch", ALL, NO_GPU, "torch-cpu"),
        ("auto", "torch", CPU_TORCH, H100, "torch-cpu"),
        ("auto", "onnx", ALL, H100, "onnx-cuda"),
        ("cpu", "auto", ALL, H100, "onnx-cpu"),
        ("cpu", "torch", ALL, H100, "torch-cpu"),
        ("cpu", "onnx", NOTHING, NO_GPU, "onnx-cpu"),
        ("cuda", "auto", ALL, H100, "torch-cuda"),
        ("cuda", "auto", NO_TORCH, H100, "onnx-cuda"),
        ("cuda", "onnx", ALL, H100, "onnx-cuda"),
        ("cuda", "torch", ALL, H100, "torch-cuda"),
    ],
)
def test_the_engine(
    device: Any, backend: Any, installed: Installed, cuda: CudaFound, engine: Engine
) -> None:
    choice = decide(device=device, backend=backend, installed=installed, cuda=cuda)
    assert choice.engine == engine
    assert choice.device == engine.split("-")[1]


def test_the_reason_names_what_was_looked_for() -> None:
    choice = decide(device="auto", backend="auto", installed=ALL, cuda=NO_GPU)
    assert choice == EngineChoice(
        engine="onnx-cpu",
        reason="no CUDA device was found; looked for the driver's library libcuda.so.1, which is "
        "missing; ONNX Runtime needs no torch",
    )


@pytest.mark.parametrize(
    ("device", "backend", "installed", "cuda", "error", "message"),
    [
        (
            "cuda", "auto", ALL, NO_GPU, BadInput,
            ("The device cuda was asked for, and none was found: looked for the driver's library "
            "libcuda.so.1, which is missing. Check that nvidia-smi lists a GPU, or choose --device "
            "cpu."),
        ),
        (
            "cuda", "torch", CPU_TORCH, H100, BadInput,
            ("The device cuda was asked for with torch, and the torch that is installed was built "
            "without CUDA. Install a build of torch for CUDA, or choose --device cpu."),
        ),
        (
            "cuda", "onnx", CPU_TORCH, H100, BadInput,
            ("The device cuda was asked for with onnxruntime, and the onnxruntime that is "
            "installed was built without CUDA. Install onnxruntime-gpu in its place, or choose "
            "--device cpu."),
        ),
        (
            "cuda", "torch", NO_TORCH, H100, MissingExtra,
            ("The torch backend needs the package 'torch', which is not installed here. Install it "
            "with: pip install 'longspan[cuda]'"),
        ),
        (
            "cpu", "torch", NO_TORCH, NO_GPU, MissingExtra,
            ("The torch backend needs the package 'torch', which is not installed here. Install it "
            "with: pip install 'longspan[cuda]'"),
        ),
        (
            "cuda", "auto", NOTHING, H100, MissingExtra,
            ("Running on CUDA needs the package 'torch and triton', which is not installed here. "
            "Install it with: pip install 'longspan[cuda]'"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(
    device: Any, backend: Any, installed: Installed, cuda: CudaFound, error: Any, message: str
) -> None:
    with pytest.raises(error) as caught:
        decide(device=device, backend=backend, installed=installed, cuda=cuda)
    assert str(caught.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_wheel_for_cuda_makes_no_gpu() -> None:
    assert choose_engine().engine == "onnx-cpu"


@pytest.mark.gpu
def test_a_gpu_is_found() -> None:
    assert choose_engine().engine == "torch-cuda"


@pytest.mark.gpu
@pytest.mark.onnx_cuda
def test_onnxruntime_finds_a_gpu() -> None:
    assert choose_engine(backend="onnx").engine == "onnx-cuda"


@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 7]], ids=str)
def test_the_fake_says_what_followed_before(cuts: list[int]) -> None:
    backend = FakeBackend(100)
    tokens = np.array([5, 6, 7, 5, 6, 8, 5, 9, 9, 3, 6, 5])
    state, start, answers = backend.new_state(), 0, []
    for length in cuts:
        keep = range(length)
        logits, state = backend.forward(tokens[start : start + length], state, keep=keep)
        answers += logits.argmax(-1).tolist()
        start += length
    assert answers == [5, 6, 7, 6, 7, 8, 6, 9, 9, 3, 8, 9]
    assert backend.to_arrays(state)["position"].tolist() == [12]
    backend.close()
    assert backend.closed


def test_the_manifest_survives_writing(bundles: Bundles) -> None:
    manifest = bundles["bfloat16"].manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("engine", CPU)
def test_running_out_of_memory_is_said(
    bundles: Bundles, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = opened(bundles["float32"], engine)

    def refuse(*_: Any, **__: Any) -> None:
        if engine == "torch-cpu":
            raise torch.OutOfMemoryError("no room")
        from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

        raise RuntimeException("Available memory of 1 is smaller than requested bytes of 2")

    if engine == "torch-cpu":
        monkeypatch.setattr(backend._decoder, "forward", refuse)
    else:
        session = backend._session

        class Full:
            io_binding = session.io_binding
            run_with_iobinding = staticmethod(refuse)

        monkeypatch.setattr(backend, "_session", Full())
    with pytest.raises(BudgetExceeded) as caught:
        backend.forward(TOKENS, backend.new_state(), keep=[])
    start = "A chunk of 40 tokens needs more memory than the budget leaves: "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(". Give a larger --budget.")
