"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and plain values.

A checkpoint is torch's zip file, in whose comment stands a checksum of all that comes before. Torch and older versions
of this program read it as any other.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optimag_dist.files import atomic
from optimag_dist.integrity import MappedFile, checksum, verified_once
from optimag_dist.types import InputError

_AGAIN = "delete it to train from the start"
_MARK = b"optimag "
_COMMENT_SIZE = len(_MARK) + 32


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, and containers of them) to ``path``, atomically and durably;
    ``OSError`` where the disk is full."""
    with atomic(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            # Torch's writer goes on to complain of its own position.
            said = error if isinstance(error, OSError) else error.__context__
            if isinstance(said, OSError):
                raise OSError(said.errno, said.strerror, str(path)) from error
            raise
        with temporary.open("r+b") as file:
            # The length of the comment is the last thing in a zip file that has none.
            file.seek(-2, 2)
            whole = memoryview(MappedFile(temporary, None, "").buffer)[:-2]
            file.write(struct.pack("<H", _COMMENT_SIZE) + _MARK + checksum(whole).encode())


def load(path: Path, device: torch.device, remedy: str = _AGAIN) -> dict[str, Any]:
    """Read a checkpoint written by :func:`save`.

    It is compared with its checksum once for each file, user and host. Older files have only torch's own, which leave
    out parts of the file.

    Raises:
        InputError: the file is not a checkpoint or is damaged; ends in ``remedy``.
    """
    file = MappedFile(path, None, remedy)
    try:
        verified_once([file.state], "checkpoint", lambda: _verify(file))
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # Damage makes the unpickler raise anything; torch's own words advise to unpickle what may not be trusted.
        raise InputError(f"{path}: not a readable checkpoint, or damaged; {remedy}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a checkpoint of this program; {remedy}")
    return state


def put(module: nn.Module, weights: Any, what: str) -> None:
    """``module.load_state_dict(weights)``; ``InputError``, which begins with ``what``, where they do not fit."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"{what} do not fit its own configuration; train again: {error}") from error


def _verify(file: MappedFile) -> None:
    with zipfile.ZipFile(file.path) as archive:
        if archive.comment:
            content = memoryview(file.buffer)[: -_COMMENT_SIZE - 2]
            damaged = archive.comment != _MARK + checksum(content).encode()
        else:
            damaged = archive.testzip() is not None
    if damaged:
        raise ValueError("its bytes are not what was written")
