"""Tensors in ``.pt`` files, without running code from them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimag_dist.types import InputError


class _Plain:
    """Stands in for the classes of PyTorch Geometric's ``Data``: takes their attributes and has no methods."""


_PYG = "torch_geometric.data"
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Plain, f"{_PYG}.{name}")
    for name in (
        "data.Data",
        "data.DataEdgeAttr",
        "data.DataTensorAttr",
        "storage.BaseStorage",
        "storage.GlobalStorage",
        "storage.NodeStorage",
        "storage.EdgeStorage",
    )
]


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``, tensors mapped where the file's format allows it.

    A ``Data`` of PyTorch Geometric comes as the dictionary of its attributes; the library need not be there.

    Raises:
        InputError: no such file, damaged, or made of more than tensors, numbers, texts and containers of them.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals([dict, *_STAND_INS]):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of torch before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line), str(error).split("\n")[0])
        raise InputError(
            f"{path}: cannot be read as tensors: {reason.strip()}; only tensors and plain containers are read, since "
            "other pickled objects could run code: save a dictionary of tensors"
        ) from error
    return _attributes(content)


def _attributes(content: Any) -> Any:
    if isinstance(content, (tuple, list)) and any(map(_is_pyg, content)):
        return tuple(_attributes(part) for part in content)
    if not _is_pyg(content):
        return content
    state = vars(content)
    # Data keeps its tensors in a storage, and that in a mapping; before version 2 they were its own.
    store = vars(state["_store"]) if "_store" in state else state
    return dict(store.get("_mapping", store))


def _is_pyg(content: Any) -> bool:
    # Where the library has been imported, torch takes its classes for some of the stand-ins.
    return isinstance(content, _Plain) or type(content).__module__.startswith("torch_geometric.")


def as_numpy(values: Any) -> np.ndarray:
    """A tensor, array or list as an array; bfloat16, which numpy lacks, as float32."""
    if isinstance(values, Tensor):
        values = values.detach()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
