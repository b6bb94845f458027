"""Prints the layouts of what a packed product's PTX reads and writes, compiled without a GPU.

python -m tests.kernels.packed_layout        # not under TRITON_INTERPRET
"""

from __future__ import annotations

import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longspan.kernels.quantized_linear.triton_kernel import _quantized_linear as kernel

POINTERS = {
    "x_ptr": "*bf16", "weight_ptr": "*i32", "scales_ptr": "*bf16", "zeros_ptr": "*u8",
    "y_ptr": "*bf16",
}  # fmt: skip
# Of a row that is laid out.
LAID_OUT = {"x_ptr": "*i32", "sums_ptr": "*fp32", "squares_ptr": "*fp32"}

# Warps, rows of a program, capability, bits; whether x and scales lie at a multiple of 16 bytes, or
# the row is laid out, and does.
CASES = [
    (1, 8, 86, 8, "aligned"), (4, 16, 90, 4, "aligned"), (8, 8, 90, 4, "anywhere"),
    (8, 16, 90, 8, "anywhere"), (1, 8, 86, 4, "laid out"), (4, 32, 90, 4, "laid out"),
    (8, 16, 90, 8, "laid out"),
]  # fmt: skip


def layouts(*, capability: int, bits: int, warps: int, rows: int, x: str) -> set[str]:
    """Layouts of the kernel's inline PTX, with x as a case has it."""
    laid_out = x == "laid out"
    constants = {
        "bias_ptr": None, "X_ROWS": 1, "WIDTH": 992, "PARTS": 3 if laid_out else 0, "LANES": 32,
        "DTYPE": tl.bfloat16, "BITS": bits, "SCALED": 32, "ROWS": rows, "BLOCK": 16 * warps,
        "NEIGHBOURS": 4, "DEPTH": 2, "TENSOR_CORES": True, "OVERLAP": False,
    }  # fmt: skip
    pointers = POINTERS | LAID_OUT if laid_out else POINTERS
    constants |= {name: None for name in LAID_OUT if name not in pointers}
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names
    }
    signature["eps"] = "fp32"
    known = set(pointers) - ({"x_ptr", "scales_ptr"} if x == "anywhere" else set())
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in known},
    )
    target = GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options={"num_warps": warps}).asm["ttgir"]
    used = re.findall(r"elementwise_inline_asm.*-> tensor<[^>]*, (#\w+)>", code)
    assert used, "no inline PTX"
    return {
        match[1] for name in used if (match := re.search(rf"^{name} = (.*)$", code, re.MULTILINE))
    }


def main() -> None:
    """Print the warps and each layout that there is with them."""
    for warps, rows, capability, bits, x in CASES:
        for layout in layouts(capability=capability, bits=bits, warps=warps, rows=rows, x=x):
            sys.stdout.write(f"{warps} {layout}\n")


if __name__ == "__main__":
    main()
