"""What the commands take, with Typer's annotations."""

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


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file, or a bundle.")
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or 'builtin'.")
]
NewBundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder to write.")]
AnyPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="A checkpoint, a bundle, or a .span file.")
]
Documents = Annotated[
    list[Path], typer.Argument(metavar="DOCUMENT...", help="UTF-8 texts, read in this order.")
]
Questions = Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to run.")]
BackendOption = Annotated[BackendChoice, typer.Option(help="What runs the model.")]
CacheOption = Annotated[
    Cache | None,
    typer.Option(
        "--cache",
        help="Keep keys and values in int8, or, with auto, where nothing fits without it. "
        "Default: in the dtype of the weights.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Bytes the whole process may hold, as 512MiB or 2GB. Default: 0.9 of what is free.",
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="SIZE",
        help="Bytes the whole process may hold; may be given again, or several as 512MiB,2GiB. "
        "Default: 0.9 of what is free.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="PROGRAM", help="Run --checkpoint there, too, where it is installed: transformers."
    ),
]
AgainstCheckpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FOLDER", help="What --against reads: a checkpoint."),
]
Template = Annotated[
    str | None, typer.Option("--template", help="How to ask, with {question} in it.")
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Draw from this share of probability.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="Of what is drawn at random.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Text that ends an answer; may be given again.")
]
Force = Annotated[bool, typer.Option(help="Replace an existing bundle.")]
AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Take weights with NaN or infinities as they are."),
]
Anchors = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="Tokens that stand for the segment before them, whose keys are dropped (AnLLM): ac, "
        "ep, ids=1,2,3, every=N, or every=auto, the most anchors with which --tokens fit --budget.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(help="With --anchors: absolute, or compressed as in AnLLM's authors' runs."),
]
AutoTokens = Annotated[
    str | None, typer.Option(metavar="N", help="With every=auto: length of a document, as 256K.")
]
AutoBudget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="With every=auto: bytes that reading it may hold here."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16; default: as in the checkpoint. int8 or int4: matrices "
        "in so many bits, all else in 16."
    ),
]
Block = Annotated[
    int | None,
    typer.Option(help="Of int8 and int4: how many weights share a scale: 32 (default), 64 or 128."),
]
Asymmetric = Annotated[
    bool, typer.Option("--asymmetric", help="Of int8 and int4: store a zero point a block, too.")
]
QuantizeEmbedding = Annotated[
    bool | None,
    typer.Option(
        "--quantize-embedding/--no-quantize-embedding",
        help="Of int8 and int4: the embedding, too (default), or not.",
    ),
]
QuantizeHead = Annotated[
    bool | None,
    typer.Option(
        "--quantize-head/--no-quantize-head",
        help="Of int8 and int4: the head, too (default), or not; as the embedding if it is that.",
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Of int8 and int4: a UTF-8 text that tells what they cost. Of int4, its first two "
        "thirds (at most 16,384 tokens) round the weights, if they are 4,096 tokens or more.",
    ),
]
Nearest = Annotated[
    bool,
    typer.Option("--nearest", help="Of int4 with --calibrate: round to the nearest all the same."),
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
    Path | None, typer.Option(help="A config.json, where the checkpoint has none.")
]
Length = Annotated[str | None, typer.Option(help="Length of the document, as 256K; default: any.")]
Lengths = Annotated[str, typer.Option(help="Lengths, as 8K,64K,256K.")]
Fit = Annotated[
    bool, typer.Option("--fit", help="Show the least budget and the longest document instead.")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Say why each choice was made, and whence each figure is.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw memory and speed.")]
NewMemory = Annotated[Path, typer.Option("--out", metavar="FILE.span", help="What to write.")]
MemoryFile = Annotated[Path | None, typer.Option(metavar="FILE.span", help="What `read` wrote.")]
DraftBundle = Annotated[
    Path | None,
    typer.Option(
        "--draft",
        metavar="BUNDLE",
        help="A smaller bundle that drafts answers: the same answers (greedy only) in fewer passes "
        "of BUNDLE. It runs beside it, under the same budget.",
    ),
]
DraftMemory = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.span",
        help="What `read` wrote with the draft's bundle. Without it the draft model reads the "
        "question and the answer only, not the document.",
    ),
]
DraftTokens = Annotated[int, typer.Option(help="Tokens that the draft model guesses at once.")]
DocumentFile = Annotated[Path | None, typer.Option(help="A UTF-8 text to read.")]
About = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Read about so many tokens, as 16K or 1M: its start, or all of it again and again, "
        "each time with another fact in it that is not asked for. Default: all of it, once.",
    ),
]
Depth = Annotated[
    float | None,
    typer.Option(
        help="Place of what is asked for, or of a story's start, 0 to 1; default: a random one."
    ),
]
TaskOption = Annotated[
    TaskChoice,
    typer.Option(
        "--task",
        help="What is hidden: a pass key, eight numbers of which one is asked for, or a story of "
        "people who walk about and carry things.",
    ),
]
DemoBundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="Ask this one; default: the built-in model, within the least budget that it fits.",
    ),
]
