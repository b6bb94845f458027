"""PTX that multiplies four words of 8 or 4 bits of each lane with x on tensor cores.

Triton has no product of 4 bits, and its own of 16 bits wants the matrix dequantised in another
layout, by way of shared memory. Here the words stay where they were loaded. A lane has four words
of one row, 32 numbers of 4 bits or 16 of 8; lane 4 g + t has those of row g and place t.
``mma.m16n8k16`` multiplies a matrix of 16 rows, of which a lane holds parts of rows g and g + 8,
with one of 8 columns: the first half of a lane's numbers counts as row g, the second as row g + 8;
columns 2 t and 2 t + 1 hold x for the two halves of place t, and zeros for other places. So a
lane's own sum is its first result plus its last.

A number comes out of its word in 16 bits, less its zero point, exactly: its bits are set into the
mantissa of 2^7 (bfloat16) or 2^10 (float16), from which 2^7 + zero or 2^10 + zero is taken off; 8
bits in bfloat16 go by 2^23 in float32. Products are exact, sums are float32.

Two steps, so that several rows of x meet the numbers of one. `NUMBERS` takes four words, and what
is taken off, negative, in four copies; it gives four registers of pairs for each product, of which
4 bits need four and 8 bits two. `PRODUCTS` takes those, then x as pairs (x[i], x[i + 4]) of 8
numbers, four pairs for two products; it gives four results.
"""

from __future__ import annotations

# Of 16-bit types: PTX name, mantissa that a number is set into, and one.
_BF16 = "bf16", 0x43004300, 0x3F803F80
_F16 = "f16", 0x64006400, 0x3C003C00
# Where a product's four registers come from: a half's first word, and one of two pairs.
_PLACES = ((0, 0), (2, 0), (0, 1), (2, 1))


def _numbers_of_4_bits(kind: str, mantissa: int, one: int) -> str:
    """Words 0 and 1 are the first half, words 2 and 3 the second; a pair is a word's."""
    lines = []
    for product in range(4):
        unit, half = divmod(product, 2)
        for place, (word, pair) in enumerate(_PLACES):
            source, shift = f"${16 + word + unit}", 4 * (2 * half + pair)
            if shift:
                lines.append(f"shr.u32 s, {source}, {shift};")
                source = "s"
            lines += [
                f"lop3.b32 s, {source}, 0x000F000F, 0x{mantissa:08X}, 0xEA;",
                f"fma.rn.{kind}x2 ${4 * product + place}, s, o, $20;",
            ]
    return _block([f"mov.b32 o, 0x{one:08X};", *lines])


def _numbers_of_8_bits(kind: str, mantissa: int, one: int) -> str:
    """Words 0 and 1 are the first half, 2 and 3 the second; a pair has a byte of both words."""
    lines = []
    for product in range(2):
        for place, (word, pair) in enumerate(_PLACES):
            byte, low, high = 2 * product + pair, f"${8 + word}", f"${9 + word}"
            result = f"${4 * product + place}"
            if kind == "bf16":
                # A mantissa of 7 bits has no room for 8.
                lines += [
                    f"prmt.b32 s, {low}, 0x4B000000, 0x765{byte};",
                    f"prmt.b32 r, {high}, 0x4B000000, 0x765{byte};",
                    "mov.b32 f0, s;",
                    "mov.b32 f1, r;",
                    "mov.b32 f2, $12;",
                    "add.f32 f0, f0, f2;",
                    "add.f32 f1, f1, f2;",
                    f"cvt.rn.bf16x2.f32 {result}, f1, f0;",
                ]
            else:
                lines += [
                    f"prmt.b32 s, {low}, {high}, 0x00{4 + byte}{byte};",
                    f"prmt.b32 s, s, 0x{mantissa:08X}, 0x5150;",
                    f"fma.rn.f16x2 {result}, s, o, $12;",
                ]
    return _block([f"mov.b32 o, 0x{one:08X};", *lines])


def _products(kind: str, count: int) -> str:
    """So many products, one added to the other."""
    names = [f"c{i}" for i in range(4)]
    sums = "{" + ", ".join(names) + "}"
    lines = [f"mov.f32 {name}, 0f00000000;" for name in names]
    for product in range(count):
        left = ", ".join(f"${4 + 4 * product + i}" for i in range(4))
        right = ", ".join(f"${4 + 4 * count + 2 * product + i}" for i in range(2))
        lines.append(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
            f"{sums}, {{{left}}}, {{{right}}}, {sums};"
        )
    return _block(lines + [f"mov.f32 ${i}, {name};" for i, name in enumerate(names)])


def _block(lines: list[str]) -> str:
    """The instructions, in registers of their own."""
    registers = [".reg .b32 o, r, s;", ".reg .f32 c0, c1, c2, c3, f0, f1, f2;"]
    return "\n".join(["{", *registers, *lines, "}"])


NUMBERS_OF_4_BITS_BF16, NUMBERS_OF_4_BITS_F16 = (
    _numbers_of_4_bits(*_BF16),
    _numbers_of_4_bits(*_F16),
)
NUMBERS_OF_8_BITS_BF16, NUMBERS_OF_8_BITS_F16 = (
    _numbers_of_8_bits(*_BF16),
    _numbers_of_8_bits(*_F16),
)
PRODUCTS_OF_4_BITS_BF16, PRODUCTS_OF_4_BITS_F16 = _products("bf16", 4), _products("f16", 4)
PRODUCTS_OF_8_BITS_BF16, PRODUCTS_OF_8_BITS_F16 = _products("bf16", 2), _products("f16", 2)
# Early clobber: words are read after the first numbers are written.
NUMBERS_OPERANDS_OF_4_BITS = ",".join(["=&r"] * 16 + ["r"] * 8)
NUMBERS_OPERANDS_OF_8_BITS = ",".join(["=&r"] * 8 + ["r"] * 8)
PRODUCTS_OPERANDS_OF_4_BITS = ",".join(["=f"] * 4 + ["r"] * 24)
PRODUCTS_OPERANDS_OF_8_BITS = ",".join(["=f"] * 4 + ["r"] * 12)
