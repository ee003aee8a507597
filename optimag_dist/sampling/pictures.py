"""Stored pictures as pixels of one size."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from optimag_dist.models.pretrained import PictureReader
from optimag_dist.types import InputError


def read_pictures(
    values: Sequence[bytes | None],
    size: int,
    ids: Sequence[str | int] | np.ndarray,
    on_bad: Literal["mask", "error"] = "mask",
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as PNG, JPEG, … → pixels, and which of them are there.

    They are put on white; the shorter side is scaled to ``size``, antialiased, and of the longer one the middle is
    taken.

    Args:
        values: k pictures; None or nothing where a node has none.
        size: side in pixels.
        ids: (k,) the user's ids of their nodes, to name them by.
        on_bad: pictures that do not decode are left out, counted and named in a warning (``mask``), or an error.

    Returns:
        (k, 3, size, size) uint8 RGB, zeros where there is none; (k,) bool, where there is one that decodes.

    Raises:
        InputError: a picture does not decode, and ``on_bad`` is ``error``.
    """
    pixels, decoded = PictureReader(size).read(values)
    bad = [id_ for id_, value, there in zip(ids, values, decoded, strict=True) if value and not there]
    if bad:
        named = ", ".join(repr(str(id_)) for id_ in bad[:3]) + (", …" if len(bad) > 3 else "")
        message = f"{len(bad)} of {len(values)} pictures do not decode, those of {named}"
        if on_bad == "error":
            raise InputError(f"{message}; mend them, or leave such nodes out with on_bad_picture=mask")
        warnings.warn(f"{message}; these nodes count as nodes without a picture", stacklevel=2)
    return pixels, decoded
