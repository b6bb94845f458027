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
    mamba_ssm,
    mambabyte,
    mixcon,
    mixcon_config,
    samba,
    samba_config,
)
from longspan.models.foreign_config import Field, load_config
from longspan.models.tensor_files import WEIGHT_FILES

__all__ = ["FAMILIES", "Family", "family_of", "open_checkpoint"]


CONFIG = "config.json"
SSM_CONFIG, ATTENTION_CONFIG = f"{CONFIG}, ssm_cfg", f"{CONFIG}, attn_cfg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        name: as the manifest and messages have it.
        what: whose files these are, for people.
        files: names of the files that may hold its weights.
        keys: what its configs may hold, by key, for each part of them by name.
        traps: what a reader of these files gets wrong easily and this one does not, as a list in
            Markdown.
        detect: whether a path with this config (None: no config) is of the family.
        open_checkpoint: opens the path, with the config given or the one beside it.
    """

    name: str
    what: str
    files: tuple[str, ...]
    keys: Mapping[str, Mapping[str, Field]]
    traps: str
    detect: Callable[[Path, Mapping[str, Any] | None], bool]
    open_checkpoint: Callable[[Path, Path | None], Checkpoint]


FAMILIES = (
    Family(
        name=samba.NAME,
        what="microsoft/Samba, a .pth with the key 'model'",
        files=samba.FILES,
        keys={CONFIG: samba_config.FIELDS},
        traps=samba.TRAPS,
        detect=samba.detect,
        open_checkpoint=samba.open_checkpoint,
    ),
    Family(
        name=hf_mamba.NAME,
        what="transformers' Mamba, model_type 'mamba'",
        files=WEIGHT_FILES,
        keys={CONFIG: hf_mamba.FIELDS},
        traps=hf_mamba.TRAPS,
        detect=hf_mamba.detect,
        open_checkpoint=hf_mamba.open_checkpoint,
    ),
    Family(
        name=falcon_mamba.NAME,
        what="transformers' Falcon-Mamba, model_type 'falcon_mamba'",
        files=WEIGHT_FILES,
        keys={CONFIG: falcon_mamba.FIELDS},
        traps=falcon_mamba.TRAPS,
        detect=falcon_mamba.detect,
        open_checkpoint=falcon_mamba.open_checkpoint,
    ),
    Family(
        name=hf_mamba2.NAME,
        what="transformers' Mamba-2, model_type 'mamba2'",
        files=WEIGHT_FILES,
        keys={CONFIG: hf_mamba2.FIELDS},
        traps=hf_mamba2.TRAPS,
        detect=hf_mamba2.detect,
        open_checkpoint=hf_mamba2.open_checkpoint,
    ),
    Family(
        name=llama.NAME,
        what="transformers' Llama, model_type 'llama'",
        files=WEIGHT_FILES,
        keys={CONFIG: llama.FIELDS, f"{CONFIG}, rope_parameters": llama.ROPE_FIELDS},
        traps=llama.TRAPS,
        detect=llama.detect,
        open_checkpoint=llama.open_checkpoint,
    ),
    Family(
        name=mixcon.NAME,
        what="MixCon in longspan's own format, model_type 'mixcon'",
        files=WEIGHT_FILES,
        keys={CONFIG: mixcon_config.FIELDS, f"{CONFIG}, conba": mixcon_config.CONBA_FIELDS},
        traps=mixcon.TRAPS,
        detect=mixcon.detect,
        open_checkpoint=mixcon.open_checkpoint,
    ),
    Family(
        name=mamba2.NAME,
        what="state-spaces Mamba-2, a mamba_ssm config whose ssm_cfg has layer 'Mamba2'",
        files=WEIGHT_FILES,
        keys={
            CONFIG: mamba.FIELDS,
            SSM_CONFIG: mamba2.SSM_FIELDS,
            ATTENTION_CONFIG: mamba_ssm.ATTENTION_FIELDS,
        },
        traps=mamba2.TRAPS,
        detect=mamba2.detect,
        open_checkpoint=mamba2.open_checkpoint,
    ),
    Family(
        name=mambabyte.NAME,
        what="MambaByte, a mamba_ssm config with a vocabulary of 256",
        files=WEIGHT_FILES,
        keys={CONFIG: mambabyte.FIELDS, SSM_CONFIG: mamba.SSM_FIELDS},
        traps=mambabyte.TRAPS,
        detect=mambabyte.detect,
        open_checkpoint=mambabyte.open_checkpoint,
    ),
    Family(
        name=mamba.NAME,
        what="state-spaces Mamba, a config with d_model and n_layer",
        files=WEIGHT_FILES,
        keys={
            CONFIG: mamba.FIELDS,
            SSM_CONFIG: mamba.SSM_FIELDS,
            ATTENTION_CONFIG: mamba_ssm.ATTENTION_FIELDS,
        },
        traps=mamba.TRAPS,
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


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that opened the checkpoint."""
    (family,) = (each for each in FAMILIES if each.name == checkpoint.family)
    return family


def _found(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "has no config.json"
    if "model_type" in data:
        return f"its config says model_type {data['model_type']!r}"
    return f"its config has the keys {', '.join(sorted(data)[:5])}"
