"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and plain values."""

from pathlib import Path
from typing import Any

import torch

from optimag_dist.files import atomic
from optimag_dist.types import InputError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, and containers of them) to ``path``, atomically and durably."""
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint written by :func:`save`.

    Raises:
        InputError: the file is not a checkpoint or is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # Damage makes the unpickler raise anything; torch's own words advise to unpickle what may not be trusted.
        raise InputError(f"{path}: not a readable checkpoint, or damaged; delete it to train from the start") from error
