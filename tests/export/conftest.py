"""Bundles of every family and dtype, each exported once for the whole run."""

from __future__ import annotations

from functools import cache

import pytest
from helpers_checkpoints import (
    Exported,
    write_falcon_mamba,
    write_hf,
    write_hf_mamba2,
    write_llama,
    write_mamba,
    write_mamba2,
    write_mambabyte,
    write_mixcon,
    write_samba,
    write_tokenizer,
)

from longspan.export import ExportReport, export_bundle

WRITERS = {
    "samba": write_samba,
    "mamba": write_mamba,
    "mamba2": write_mamba2,
    "mambabyte": write_mambabyte,
    "hf_mamba": write_hf,
    "hf_mamba2": write_hf_mamba2,
    "falcon_mamba": write_falcon_mamba,
    "mixcon": write_mixcon,
    "llama": write_llama,
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the tiny checkpoint of a family with weights of a dtype; twice asked, once done."""

    @cache
    def export(family: str, dtype: str) -> ExportReport:
        folder = tmp_path_factory.mktemp(f"{family}-{dtype}")
        WRITERS[family](folder / "checkpoint")
        if family != "mambabyte":  # its tokens are bytes
            write_tokenizer(folder / "checkpoint/tokenizer.json")
        return export_bundle(folder / "checkpoint", folder / "bundle", weights=dtype)

    return export
