"""Options that several commands share, with Typer's annotations."""

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


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file.")
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or 'builtin'.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to run.")]
BackendOption = Annotated[BackendChoice, typer.Option(help="What runs the model.")]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Bytes the whole process may hold, as 512MiB or 2GB. Default: 0.9 of what is free.",
    ),
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
Weights = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16; default: as in the checkpoint.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option(help="A tokenizer.json, where the checkpoint has none.")
]
SplitDigits = Annotated[
    bool, typer.Option("--split-digits", help="Make every digit a token of its own.")
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="A config.json, where the checkpoint has none.")
]
DocumentFile = Annotated[Path | None, typer.Option(help="A UTF-8 text to read.")]
About = Annotated[
    str | None, typer.Option(metavar="N", help="Read only about so many tokens of it, as 16K.")
]
Depth = Annotated[
    float | None, typer.Option(help="Place of the key, 0 to 1; default: a random one.")
]
