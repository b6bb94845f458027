"""A folder that appears complete or not at all.

with new_folder(Path("bundle"), force=False) as partial: ...   # files go into `partial`
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longspan.errors import BadInput


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place when the block ends well.

    Args:
        path: where the folder will be; its parents are made.
        force: whether a folder that is there may be replaced, after the new one is complete.

    Raises:
        BadInput: there is a file, or a folder with something in it and `force` is false; or the new
            one cannot be written.
    """
    check_free(path, force=force)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        try:
            # mkdtemp makes it private; a bundle is readable as any new folder is.
            partial.chmod(0o777 & ~_umask())
            yield partial
            _replace(path, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise BadInput(
            f"{path} was asked for as a new bundle, and it cannot be written ({error}). Nothing of "
            "it is left there. Choose a folder that may be written, with room for the bundle."
        ) from error
    finally:
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def check_free(path: Path, *, force: bool) -> None:
    """Refuse a place that holds something already.

    Raises:
        BadInput: there is a file, or a folder with something in it and `force` is false.
    """
    if path.is_dir():
        if force or not any(path.iterdir()):
            return
        raise BadInput(
            f"{path} was asked for as a new bundle, and it is a folder with something in it. "
            "Nothing is overwritten unasked. Choose another path, or give force=True (--force)."
        )
    if path.exists():
        raise BadInput(
            f"{path} was asked for as a new bundle, and it is a file. A bundle is a folder. "
            "Choose another path."
        )


def _replace(path: Path, partial: Path) -> None:
    """Put `partial` where `path` is; what was there goes only when the new folder stands."""
    if not path.exists():
        partial.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
