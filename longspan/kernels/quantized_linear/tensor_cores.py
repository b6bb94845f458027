"""PTX that multiplies four words of 8 or 4 bits of each lane with x on tensor cores.

Triton has no product of 4 bits, and its own of 16 bits wants the matrix dequantised in another
layout, by way of shared memory. Here the words stay where they were loaded. A lane has four words
of one row, 32 numbers of 4 bits or 16 of 8; lane 4 g + t has those of row g and place t.
``mma.m16n8k16`` multiplies a matrix of 16 rows, of which a lane holds parts of rows g and g + 8,
with one of 8 columns: the first half of a lane's numbers counts as row g, the second as row g + 8;
columns 2 t and 2 t + 1 hold x for the two halves of place t, and zeros for other places. So a
lane's own sum is its first result plus its last.

A number is an operand almost as it lies in its word: the low 8 bits of 16 are, with the rest zero,
as many times the smallest subnormal number of bfloat16, 2^-133, and of float16, 2^-24. Additions
and tensor cores take subnormal numbers as they are, so a pair of numbers takes one bit operation,
and an addition that takes its zero points off. Of 4 bits every second pair is 16 times as large: in
bfloat16 what it meets in x is a sixteenth, in float16, whose range would not do, it has a sum of
its own. In bfloat16 x is multiplied by 2^64, too, which keeps the sums far from float32's own
subnormal numbers. Products are exact, sums float32.

Steps, so that several rows of x meet the numbers of one:

- `PAIRS` takes 8 numbers of x in two fours, and gives them as four registers of pairs.
- `NUMBERS` takes four words and minus the zero point, as a pair of such numbers, in four copies,
  and of 4 bits 16 times that; it gives four registers of pairs for each product, of which 4 bits
  need four and 8 bits two.
- `PRODUCTS` takes those and `PAIRS`, four for two products; it gives four results.

Of one row of x that is `laid_out`, whole numbers of 16 bits, the words meet it as they are:

- `WHOLE_PRODUCTS` takes four words of each of two rows of the matrix, and x; it gives sums of whole
  numbers, of the lane's first two words and of its last two, of the first row and of the second.

``mma.m16n8k32`` multiplies whole numbers of 8 bits. Rows g and g + 8 are the lane's two rows;
column 2 t holds the upper half of what x is for place t, column 2 t + 1 the lower half, and results
are put together of both. A byte of two numbers of 4 bits, n + 16 m, is an operand as it lies,
beside n alone: x n + y m = (y / 16) (n + 16 m) + (x - y / 16) n. So a word takes one bit operation
of 4 bits, and none of 8.
"""

from __future__ import annotations

# Of 16-bit types: what x is multiplied with, as a pair; None for one. The second is for the pairs
# whose numbers are 16 times as large.
_X_FACTORS = {"bf16": (0x5F805F80, 0x5D805D80), "f16": None}
# What results are to be multiplied with.
RESULT_FACTOR_BF16, RESULT_FACTOR_F16 = 2.0**69, 2.0**24
# Of a product's two pairs of each half, their places among the half's; how large its numbers are.
_PRODUCTS = {
    4: (((0, 2), 1), ((1, 3), 16), ((4, 6), 1), ((5, 7), 16)),
    8: (((0, 1), 1), ((2, 3), 1)),
}

# Bytes without sign times bytes that have one.
_WHOLE = "m16n8k32.row.col.s32.u8.s8.s32"


def _pairs(bits: int, kind: str) -> str:
    """Pairs as the words have them: x[i], x[i + 4] beside 4 bits, x[i], x[i + 2] beside 8.

    The two of each product stand beside each other, as its operand must: of 4 bits 0, 2, 1, 3.
    """
    sources = (("$4", "$6"), ("$5", "$7")) if bits == 4 else (("$4", "$5"), ("$6", "$7"))
    lines, factors = [], _X_FACTORS[kind]
    for i, (low, high) in enumerate(sources):
        for j, chosen in enumerate(("0x5410", "0x7632")):
            result = f"${i + 2 * j if bits == 4 else 2 * i + j}"
            lines.append(f"prmt.b32 {result}, {low}, {high}, {chosen};")
            if factors is not None:
                factor = "s" if bits == 4 and j == 1 else "o"
                lines.append(f"fma.rn.{kind}x2 {result}, {result}, {factor}, r;")
    if factors is not None:
        constants = zip(("o", "s", "r"), (*factors, 0x80008000), strict=True)
        lines = [*(f"mov.b32 {name}, 0x{each:08X};" for name, each in constants), *lines]
    return _block(lines)


def _numbers(bits: int, kind: str) -> str:
    """Words 0 and 1 are the first half, words 2 and 3 the second."""
    products = _PRODUCTS[bits]
    first_word = 4 * len(products)
    one = {"bf16": 0x3F803F80, "f16": 0x3C003C00}[kind]
    lines = [f"mov.b32 o, 0x{one:08X};"]
    for word in range(4):
        half, unit = divmod(word, 2)
        source = f"${first_word + word}"
        # Pairs of a word: of its low 8 bits of each 16, then of the high ones.
        masks = (0x000F000F, 0x00F000F0) if bits == 4 else (0x00FF00FF,)
        for i in range(2):
            if i == 1:
                lines.append(f"shr.u32 s, {source}, 8;")
                source = "s"
            for j, mask in enumerate(masks):
                pair = (2 * unit + i) * len(masks) + j
                product, place = next(
                    (p, places.index(pair))
                    for p, (places, _) in enumerate(products)
                    if pair in places
                )
                result = f"${4 * product + 2 * place + half}"
                lines.append(f"and.b32 r, {source}, 0x{mask:08X};")
                lines.append(f"fma.rn.{kind}x2 {result}, r, o, ${first_word + 4 + 4 * j};")
    return _block(lines)


def _products(bits: int, kind: str) -> str:
    """So many products; those of numbers of one size are added to each other, then all."""
    products = _PRODUCTS[bits]
    first_x = 4 + 4 * len(products)
    lines, started = [], set()
    for product, (_, times) in enumerate(products):
        size = 1 if kind == "bf16" else times
        sums = [f"{'c' if size == 1 else 'd'}{i}" for i in range(4)]
        if size not in started:
            lines += [f"mov.f32 {name}, 0f00000000;" for name in sums]
            started.add(size)
        left = [f"${4 + 4 * product + i}" for i in range(4)]
        right = [f"${first_x + 2 * product + i}" for i in range(2)]
        lines.append(_multiply(f"m16n8k16.row.col.f32.{kind}.{kind}.f32", sums, left, right))
    # 0f3D800000 is a sixteenth.
    combine = "fma.rn.f32 ${0}, d{0}, 0f3D800000, c{0};" if 16 in started else "mov.f32 ${0}, c{0};"
    return _block(lines + [combine.format(i) for i in range(4)])


def _multiply(shape: str, sums: list[str], left: list[str], right: list[str]) -> str:
    """``sums += left @ right``, of a shape, layouts and types as PTX names them."""
    c, a, b = ("{" + ", ".join(names) + "}" for names in (sums, left, right))
    return f"mma.sync.aligned.{shape} {c}, {a}, {b}, {c};"


def _whole_products(bits: int) -> str:
    """Words of the first row, of the second, and of x, two beside one of 4 bits, else one."""
    sums, lines = [f"c{i}" for i in range(4)], []
    for half in range(2):
        lines += [f"mov.b32 {name}, 0x00000000;" for name in sums]
        words = [(f"${4 + 2 * half + i}", f"${8 + 2 * half + i}") for i in range(2)]
        if bits == 4:
            for i, (word, other) in enumerate(words):
                lines.append(f"and.b32 r, {word}, 0x0F0F0F0F;")
                lines.append(f"and.b32 s, {other}, 0x0F0F0F0F;")
                x = [f"${12 + 4 * half + 2 * i + j}" for j in range(2)]
                lines.append(_multiply(_WHOLE, sums, [word, other, "r", "s"], x))
        else:
            x = [f"${12 + 2 * half + j}" for j in range(2)]
            lines.append(_multiply(_WHOLE, sums, [*words[0], *words[1]], x))
        lines.append(f"mad.lo.s32 ${half}, c0, 256, c1;")
        lines.append(f"mad.lo.s32 ${2 + half}, c2, 256, c3;")
    return "\n".join(["{", ".reg .b32 r, s, c0, c1, c2, c3;", *lines, "}"])


def _block(lines: list[str]) -> str:
    """The instructions, in registers of their own."""
    registers = [".reg .b32 o, r, s;", ".reg .f32 c0, c1, c2, c3, d0, d1, d2, d3;"]
    return "\n".join(["{", *registers, *lines, "}"])


PAIRS_OF_4_BITS_BF16, PAIRS_OF_4_BITS_F16 = _pairs(4, "bf16"), _pairs(4, "f16")
PAIRS_OF_8_BITS_BF16, PAIRS_OF_8_BITS_F16 = _pairs(8, "bf16"), _pairs(8, "f16")
NUMBERS_OF_4_BITS_BF16, NUMBERS_OF_4_BITS_F16 = _numbers(4, "bf16"), _numbers(4, "f16")
NUMBERS_OF_8_BITS_BF16, NUMBERS_OF_8_BITS_F16 = _numbers(8, "bf16"), _numbers(8, "f16")
PRODUCTS_OF_4_BITS_BF16, PRODUCTS_OF_4_BITS_F16 = _products(4, "bf16"), _products(4, "f16")
PRODUCTS_OF_8_BITS_BF16, PRODUCTS_OF_8_BITS_F16 = _products(8, "bf16"), _products(8, "f16")
WHOLE_PRODUCTS_OF_4_BITS, WHOLE_PRODUCTS_OF_8_BITS = _whole_products(4), _whole_products(8)
# Early clobber: operands are read after the first results are written.
PAIRS_OPERANDS = ",".join(["=&r"] * 4 + ["r"] * 4)
NUMBERS_OPERANDS_OF_4_BITS = ",".join(["=&r"] * 16 + ["r"] * 12)
NUMBERS_OPERANDS_OF_8_BITS = ",".join(["=&r"] * 8 + ["r"] * 8)
PRODUCTS_OPERANDS_OF_4_BITS = ",".join(["=f"] * 4 + ["r"] * 24)
PRODUCTS_OPERANDS_OF_8_BITS = ",".join(["=f"] * 4 + ["r"] * 12)
WHOLE_PRODUCTS_OPERANDS_OF_4_BITS = ",".join(["=&r"] * 4 + ["r"] * 16)
WHOLE_PRODUCTS_OPERANDS_OF_8_BITS = ",".join(["=&r"] * 4 + ["r"] * 12)
