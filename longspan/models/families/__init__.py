"""The checkpoint families that longspan reads: one a file, one row each in `FAMILIES`.

A family is its name, a `detect` that looks at a path and its ``config.json``, and an
`open_checkpoint` that gives a `Checkpoint`. Nothing else in longspan asks which family a model is.

    checkpoint = open_checkpoint("path/to/checkpoint")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import Checkpoint
from longspan.models.families import (
    falcon_mamba,
    hf_mamba,
    hf_mamba2,
    llama,
    mamba,
    mamba2,
    mixcon,
    samba,
)
from longspan.models.foreign_config import load_config

__all__ = ["FAMILIES", "Family", "open_checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        name: as the manifest and messages have it.
        what: whose files these are, for people.
        detect: whether a path with this config (None: no config) is of the family.
        open_checkpoint: opens the path, with the config given or the one beside it.
    """

    name: str
    what: str
    detect: Callable[[Path, Mapping[str, Any] | None], bool]
    open_checkpoint: Callable[[Path, Path | None], Checkpoint]


FAMILIES = (
    Family(
        name=samba.NAME,
        what="microsoft/Samba, a .pth with the key 'model'",
        detect=samba.detect,
        open_checkpoint=samba.open_checkpoint,
    ),
    Family(
        name=hf_mamba.NAME,
        what="transformers' Mamba, model_type 'mamba'",
        detect=hf_mamba.detect,
        open_checkpoint=hf_mamba.open_checkpoint,
    ),
    Family(
        name=falcon_mamba.NAME,
        what="transformers' Falcon-Mamba, model_type 'falcon_mamba'",
        detect=falcon_mamba.detect,
        open_checkpoint=falcon_mamba.open_checkpoint,
    ),
    Family(
        name=hf_mamba2.NAME,
        what="transformers' Mamba-2, model_type 'mamba2'",
        detect=hf_mamba2.detect,
        open_checkpoint=hf_mamba2.open_checkpoint,
    ),
    Family(
        name=llama.NAME,
        what="transformers' Llama, model_type 'llama'",
        detect=llama.detect,
        open_checkpoint=llama.open_checkpoint,
    ),
    Family(
        name=mixcon.NAME,
        what="MixCon in longspan's own format, model_type 'mixcon'",
        detect=mixcon.detect,
        open_checkpoint=mixcon.open_checkpoint,
    ),
    Family(
        name=mamba2.NAME,
        what="state-spaces Mamba-2, a mamba_ssm config whose ssm_cfg has layer 'Mamba2'",
        detect=mamba2.detect,
        open_checkpoint=mamba2.open_checkpoint,
    ),
    Family(
        name=mamba.NAME,
        what="state-spaces Mamba, a config with d_model and n_layer",
        detect=mamba.detect,
        open_checkpoint=mamba.open_checkpoint,
    ),
)


def open_checkpoint(path: str | Path, config: str | Path | None = None) -> Checkpoint:
    """Open the checkpoint at `path`, whatever its family.

    Args:
        path: a folder, or a file of weights with its config beside it.
        config: a config file to use instead of the ``config.json`` beside the weights.

    Raises:
        BadCheckpoint: nothing is there, no family knows it, or it is not supported.
    """
    path, given = Path(path), Path(config) if config is not None else None
    if not path.exists():
        raise BadCheckpoint(
            f"{path} was asked for as a checkpoint and is not there. A checkpoint is a folder, or "
            "a file of weights. Check the path."
        )
    beside = (path if path.is_dir() else path.parent) / "config.json"
    where = given or (beside if beside.is_file() else None)
    data = load_config(where) if where is not None else None
    for family in FAMILIES:
        if family.detect(path, data):
            return family.open_checkpoint(path, given)
    known = "; ".join(f"{family.name} ({family.what})" for family in FAMILIES)
    raise BadCheckpoint(
        f"{path} was asked for as a checkpoint and {_found(data)}. This longspan reads: {known}. "
        "Check that this is the right folder, or give a config with config=FILE (--config)."
    )


def _found(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "has no config.json"
    if "model_type" in data:
        return f"its config says model_type {data['model_type']!r}"
    return f"its config has the keys {', '.join(sorted(data)[:5])}"
