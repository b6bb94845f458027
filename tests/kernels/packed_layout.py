"""Prints the layouts of what a packed product's PTX reads and writes, compiled without a GPU.

python -m tests.kernels.packed_layout        # not under TRITON_INTERPRET
"""

from __future__ import annotations

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longspan.kernels.quantized_linear.triton_kernel import _quantized_linear as kernel

POINTERS = {
    "x_ptr": "*bf16", "weight_ptr": "*i32", "scales_ptr": "*bf16", "zeros_ptr": "*u8",
    "y_ptr": "*bf16",
}  # fmt: skip

CASES = [(1, 8, 86, 8, True), (4, 16, 90, 4, True), (8, 8, 90, 4, False), (8, 16, 90, 8, False)]


def layouts(*, capability: int, bits: int, warps: int, rows: int, aligned: bool) -> set[str]:
    """Layouts of the kernel's inline PTX, with x at a multiple of 16 bytes or anywhere."""
    constants = {
        "bias_ptr": None, "X_ROWS": 1, "WIDTH": 1000, "BITS": bits, "SCALED": 32, "ROWS": rows,
        "BLOCK": 16 * warps, "NEIGHBOURS": 4, "DEPTH": 2, "TENSOR_CORES": True, "OVERLAP": False,
    }  # fmt: skip
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names
    }
    known = set(POINTERS) - (set() if aligned else {"x_ptr", "scales_ptr"})
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
    for warps, rows, capability, bits, aligned in CASES:
        for layout in layouts(
            capability=capability, bits=bits, warps=warps, rows=rows, aligned=aligned
        ):
            sys.stdout.write(f"{warps} {layout}\n")


if __name__ == "__main__":
    main()
