"""Whether a bundle's files are there and whole; their checksums are `longspan.runtime.verify`'s.

check_file(bundle.path, "model.safetensors", safetensors=True)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from longspan.errors import BadBundle


def check_file(folder: Path, name: str, *, safetensors: bool) -> None:
    """Check that a file of a bundle can be read and is whole.

    Args:
        folder: of the bundle.
        name: of the file in it.
        safetensors: whether it is as long as its header says, as files of that format are.

    Raises:
        BadBundle: it is not there, may not be read, or is cut short.
    """
    file = folder / name
    if not file.is_file():
        raise BadBundle(
            f"{folder} lacks {name}, which its manifest names. Export the checkpoint again."
        )
    try:
        with file.open("rb") as opened:
            announced = _announced_bytes(opened) if safetensors else None
            found = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise unreadable(file, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadBundle(
            f"{file} has no header of safetensors ({type(error).__name__}: {error}). Copy the "
            "bundle again, or export the checkpoint again."
        ) from error
    if announced not in (None, found):
        raise BadBundle(
            f"{file} has {found:,} bytes, and its header tells of {announced:,}. Copy the bundle "
            "again, or export the checkpoint again."
        )


def _announced_bytes(file: BinaryIO) -> int:
    """Bytes of a safetensors file, as its header tells."""
    start = file.read(8)
    header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or header_bytes > os.fstat(file.fileno()).st_size:
        raise ValueError("it is too short for one")
    header = json.loads(file.read(header_bytes))
    ends = (item["data_offsets"][1] for name, item in header.items() if name != "__metadata__")
    return 8 + header_bytes + max(ends, default=0)


def unreadable(file: Path, error: OSError) -> BadBundle:
    """What to tell people of a file that the system does not let this process read."""
    return BadBundle(f"{file} cannot be read: {error.strerror}. Check the file's permissions.")
