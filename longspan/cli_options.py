"""What the commands take, with Typer's annotations.

Paths are not Typer's to check (`readable=False`): a file that cannot be used is refused by what
reads it, with status 1, whatever is wrong with it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where a model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class BackendChoice(StrEnum):
    """What runs it."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"


class Cache(StrEnum):
    """What keys and values are kept in while a model runs."""

    AUTO = "auto"
    INT8 = "int8"


class TaskChoice(StrEnum):
    """What is hidden in a text, and asked for."""

    PASSKEY = "passkey"
    NEEDLES = "needles"
    MARY = "mary"


def _document(path: Path | None) -> Path | None:
    """What a person names as a document: ``-`` is the standard input."""
    return Path("/dev/stdin") if path == Path("-") else path


def _documents(paths: list[Path]) -> list[Path | None]:
    return [_document(path) for path in paths]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint's folder or file, or a bundle.", readable=False
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or 'builtin'.", readable=False)
]
NewBundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The folder to write.", readable=False)
]
AnyPath = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="A checkpoint, a bundle, or a .span file.", readable=False),
]
Documents = Annotated[
    list[Path],
    typer.Argument(
        metavar="DOCUMENT...",
        help="UTF-8 texts, read in this order; - is the standard input.",
        readable=False,
        callback=_documents,
    ),
]
Questions = Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask.")]
DeviceOption = Annotated[
    Device, typer.Option(help="The device to run on; auto takes CUDA where there is any.")
]
BackendOption = Annotated[
    BackendChoice,
    typer.Option(help="The library that runs the model; doctor tells what auto takes."),
]
CacheOption = Annotated[
    Cache | None,
    typer.Option(
        "--cache",
        help="int8 keeps keys and values in 8 bits; auto does so only where nothing fits "
        "otherwise. Default: the dtype of the weights.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory of the whole process, as 512MiB or 2GB. Default: nine tenths of what is free.",
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="SIZE",
        help="Memory of the whole process; several as 512MiB,2GiB, or the option again. "
        "Default: nine tenths of what is free.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="PROGRAM", help="Measure --checkpoint in this program, too: transformers."
    ),
]
AgainstCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FOLDER",
        help="The checkpoint that --against measures.",
        readable=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template", help="How a question is put to the model; {question} stands for it."
    ),
]
Temperature = Annotated[
    float, typer.Option(help="0 takes the most probable token each time; above 0 draws.")
]
TopP = Annotated[
    float,
    typer.Option(help="Draw from the most probable tokens that together reach this probability."),
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most probable tokens.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of all random choices; the same seed repeats them. Default: a fresh one."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="An answer ends after so many tokens.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A text that ends the answer; may be given again.")
]
Force = Annotated[bool, typer.Option(help="Replace an existing bundle.")]
AllowNonfinite = Annotated[
    bool,
    typer.Option(
        "--allow-nonfinite", help="Export weights with NaN or infinities instead of refusing them."
    ),
]
Anchors = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="Keep keys and values of anchor tokens alone once their segment is over "
        "(AnLLM): ac, ep, ids=1,2,3, every=N, or every=auto, the most anchors with which "
        "--tokens fit --budget.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        help="With --anchors: absolute (default), or compressed as AnLLM's authors ran it."
    ),
]
AutoTokens = Annotated[
    str | None,
    typer.Option(metavar="N", help="With every=auto: the length of a document, as 256K."),
]
AutoBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="With every=auto: the memory that reading it may take on this machine."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16; default: the checkpoint's. With int8 or int4 "
        "matrices have 8 or 4 bits, and all else 16."
    ),
]
Block = Annotated[
    int | None,
    typer.Option(
        help="With int8 and int4: how many weights share a scale: 32 (default), 64 or 128."
    ),
]
Asymmetric = Annotated[
    bool,
    typer.Option(
        "--asymmetric", help="With int8 and int4: store a zero point for each block, too."
    ),
]
QuantizeEmbedding = Annotated[
    bool | None,
    typer.Option(
        "--quantize-embedding/--no-quantize-embedding",
        help="With int8 and int4: quantize the embedding, too (default), or not.",
    ),
]
QuantizeHead = Annotated[
    bool | None,
    typer.Option(
        "--quantize-head/--no-quantize-head",
        help="With int8 and int4: quantize the head, too (default), or not. A tied head is as the "
        "embedding.",
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With int8 and int4: a UTF-8 text on which to measure what they cost. With int4 its "
        "first two thirds (at most 16,384 tokens) decide how weights are rounded, where they are "
        "4,096 tokens or more; the rest measures.",
        readable=False,
    ),
]
Nearest = Annotated[
    bool,
    typer.Option(
        "--nearest", help="With int4 and --calibrate: round to the nearest value all the same."
    ),
]
TokenizerFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A tokenizer.json, where the checkpoint has none; 'bytes' where a token is a byte.",
    ),
]
SplitDigits = Annotated[
    bool, typer.Option("--split-digits", help="Make every digit a token of its own.")
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="A config.json, where the checkpoint has none.", readable=False)
]
Length = Annotated[
    str | None, typer.Option(help="Length of the document, as 256K. Default: any length.")
]
Lengths = Annotated[str, typer.Option(help="Lengths to measure, as 8K,64K,256K.")]
Fit = Annotated[
    bool, typer.Option("--fit", help="Show the smallest budgets and the longest document instead.")
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", help="Say why each choice was made, and where each figure comes from."
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw memory and speed as a PNG.", readable=False),
]
NewMemory = Annotated[
    Path, typer.Option("--out", metavar="FILE.span", help="The memory to write.", readable=False)
]
MemoryFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE.span", help="A memory that `read` wrote.", readable=False),
]
DraftBundle = Annotated[
    Path | None,
    typer.Option(
        "--draft",
        metavar="BUNDLE",
        help="A smaller bundle that drafts tokens, which BUNDLE accepts or rejects: the "
        "same answer in fewer passes (greedy only), under the same budget.",
        readable=False,
    ),
]
DraftMemory = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.span",
        help="A memory that `read` wrote with the draft's bundle. Without it the draft model knows "
        "the question and the answer alone, not the document.",
        readable=False,
    ),
]
DraftTokens = Annotated[int, typer.Option(help="How many tokens the draft model guesses at once.")]
DocumentFile = Annotated[
    Path | None,
    typer.Option(
        help="A UTF-8 text to read; - is the standard input.", readable=False, callback=_document
    ),
]
About = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="About how many tokens to read, as 16K or 1M. A longer text is cut; a shorter one is "
        "repeated, each time with another fact in it. Default: the whole text, once.",
        readable=False,
    ),
]
Depth = Annotated[
    float | None,
    typer.Option(
        help="Where the fact is hidden, from 0 (the start) to 1 (the end). Default: a random place."
    ),
]
TaskOption = Annotated[
    TaskChoice,
    typer.Option(
        "--task",
        help="What is hidden: a pass key; needles, eight numbers of which one is asked "
        "for; mary, a story of people who walk about and carry things.",
    ),
]
DemoBundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="The model to ask. Default: the built-in one, within the smallest budget "
        "that it fits.",
        readable=False,
    ),
]
