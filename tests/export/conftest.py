"""Bundles of every family and dtype, each exported once for the whole run."""

from __future__ import annotations

from functools import cache

import pytest
from family_rows import ROWS
from helpers_checkpoints import Exported, write_tokenizer

from longspan.export import ExportReport, export_bundle

WRITERS = {row.family: row.write for row in ROWS}


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
