"""Imports go one way, running needs no torch, and the public names are the documented ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longspan

PACKAGE = Path(longspan.__file__).parent

# part of the package -> the other parts it may import
PLAIN = {"engines", "errors", "field_types", "sizes", "tensors", "version"}
ALLOWED = {
    "kernels": set(),
    "models": {"kernels", *PLAIN},
    "bundle": {"models", "bundle_files", *PLAIN},
    "bundle_files": PLAIN,
    "export": {"models", "kernels", "bundle", "runtime", *PLAIN},
    "weights_file": {"tensors"},
    "runtime": {"models", "kernels", "bundle", "weights_file", "builtin", "tasks", *PLAIN},
    "builtin": {"tasks"},
    "tasks": set(),
}
# Files of the runtime that may import torch, and so kernels and models.
TORCH_FILES = {"torch.py", "torch_caches.py", "torch_steps.py", "doctor.py", "verify.py"}
HEAVY = {"torch", "triton", "onnx", "onnxscript", "transformers", "matplotlib"}


def imports_of(path: Path) -> set[str]:
    """Dotted names that the file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(part: str) -> list[Path]:
    """Source files of a folder or a single module of the package."""
    single = PACKAGE / f"{part}.py"
    return [single] if single.is_file() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_go_one_way(part: str) -> None:
    for path in files(part):
        for name in imports_of(path):
            if name.startswith("longspan."):
                assert name.split(".")[1] in {part, *ALLOWED[part]}, f"{path} imports {name}"


def test_export_takes_only_verification_and_anchors_from_the_runtime() -> None:
    taken = {
        name
        for path in files("export")
        for name in imports_of(path)
        if name.startswith("longspan.runtime")
    }
    allowed = ("longspan.runtime.verify", "longspan.runtime.anchor_interval")
    assert all(name.startswith(allowed) for name in taken), taken


def test_runtime_sees_models_only_in_the_torch_backend_and_the_inspection() -> None:
    for path in files("runtime"):
        names = {
            n for n in imports_of(path) if n.startswith(("longspan.kernels", "longspan.models"))
        }
        names -= {n for n in names if n.startswith("longspan.models.config")}
        if names:
            assert path.name in TORCH_FILES, f"{path} imports {names}"


@pytest.mark.parametrize(
    ("heavy", "allowed"),
    [
        ("triton", ("kernels/",)),
        ("onnx", ("export/",)),
        ("typer", ("cli.py", "cli_options.py")),
        ("rich", ("cli.py", "render.py")),
    ],
)
def test_heavy_packages_are_imported_in_one_place(heavy: str, allowed: tuple[str, ...]) -> None:
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).as_posix()
        if any(name.split(".")[0] == heavy for name in imports_of(path)):
            assert inside.startswith(allowed), f"{inside} imports {heavy}"


@pytest.mark.parametrize("module", ["longspan", "longspan.cli", "longspan.runtime.runtime"])
def test_running_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join({HEAVY!r} & sys.modules.keys()) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_sorted_and_resolve() -> None:
    assert longspan.__all__ == sorted(longspan.__all__)
    assert {"export_bundle", "load", "Memory", "Budget"} <= set(longspan.__all__)
    for name in longspan.__all__:
        assert getattr(longspan, name) is not None


def test_files_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350, f"{path.relative_to(PACKAGE)} has {lines} lines; split it"
