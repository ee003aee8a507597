"""Tensors in ``.pt`` files, without running code from them."""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimag_dist.store.arrays import reason_of
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

FROM_ADJACENCY = "data.edge_index = torch.stack(data.adj_t.t().coo()[:2]); data.adj_t = None"
SEVERAL_KINDS = (
    "a store has one kind of nodes and of edges: save those with "
    'torch.save({"edge_index": data["a", "to", "a"].edge_index, **data["a"].to_dict()}, path), or all of them with '
    "torch.save(data.to_homogeneous().to_dict(), path) and features of one width"
)
# What stands in a file beside tensors → how to save it so that it can be read.
_ADVICE = {
    "torch_geometric.data.hetero_data.": SEVERAL_KINDS,
    "torch_sparse.": f"save the edges as a tensor: {FROM_ADJACENCY}; torch.save(data.to_dict(), path)",
    "torch_geometric.": "save the one graph you mean as a dictionary: torch.save(data.to_dict(), path)",
    "numpy.": "save tensors: torch.from_numpy(array)",
    "scipy.": "save the edges as a tensor: torch.from_numpy(numpy.stack(matrix.nonzero()))",
}


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote to ``path``, tensors mapped where the file's format allows it. A ``Data`` of PyTorch
    Geometric comes as the dictionary of its attributes; the library need not be there. ``InputError``: no such file,
    damaged, or made of more than tensors, numbers, texts and containers of them."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    _check_sums(path)
    try:
        with torch.serialization.safe_globals([dict, *_STAND_INS]):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of torch before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
        several = isinstance(content, (tuple, list)) and any(map(_is_pyg, content))
        return tuple(map(_mapping, content)) if several else _mapping(content)
    # What a pickle that is damaged or made on purpose can raise has no end.
    except Exception as error:
        if match := re.search(r"Unsupported (?:global|operand|class)\w*:? (?:GLOBAL )?([\w.]+)", str(error)):
            advice = next((text for name, text in _ADVICE.items() if match[1].startswith(name)), None)
            raise InputError(
                f"{path}: holds {match[1]}; only tensors and plain containers are read, since other pickled objects "
                f"could run code: {advice or 'save a dictionary of tensors'}"
            ) from error
        raise InputError(
            f"{path}: cannot be read as tensors, it is damaged or not written by torch.save ({reason_of(error)}); "
            "only tensors and plain containers are read, since other pickled objects could run code: save a dictionary "
            "of tensors again"
        ) from error


def _check_sums(path: Path) -> None:
    # torch reads over the checksums of its archives.
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:
        raise InputError(f"{path}: damaged ({reason_of(error)}); copy or write the file again") from error
    if damaged is not None:
        raise InputError(f"{path}: damaged: {damaged} does not match its checksum; copy or write the file again")


def _mapping(content: Any) -> Any:
    if not _is_pyg(content):
        return content
    state = vars(content)
    # Data keeps its tensors in a storage, and that in a mapping; before version 2 they were its own.
    store = vars(state["_store"]) if "_store" in state else state
    return dict(store.get("_mapping", store))


def _is_pyg(content: Any) -> bool:
    # Where the library has been imported, torch takes its classes for some of the stand-ins.
    return isinstance(content, _Plain) or type(content).__module__.startswith("torch_geometric.")


def as_numpy(place: str, values: Any) -> np.ndarray:
    """A tensor or list as an array; bfloat16 and float8, which numpy lacks, as float32. ``InputError``, beginning with
    ``place``: a sparse or quantised tensor, another type that numpy lacks, no array."""
    if not isinstance(values, Tensor):
        try:
            return np.asarray(values)
        except Exception as error:
            raise InputError(f"{place}: cannot be made an array: {error}; save it as a tensor") from error
    values = values.detach()
    if values.layout is not torch.strided or values.is_quantized:
        kind, remedy = "sparse", "tensor.to_dense() (edges: tensor.coalesce().indices())"
        if values.is_quantized:
            kind, remedy = "quantised", "tensor.dequantize()"
        raise InputError(f"{place}: needed a dense tensor, got a {kind} one; save {remedy}")
    try:
        if values.dtype.is_floating_point and values.dtype not in (torch.float16, torch.float32, torch.float64):
            values = values.float()
        return values.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{place}: {values.dtype} is no type of number that is read; save tensor.float()") from error


def attribute(data: Mapping[Any, Any], key: str, path: Path) -> np.ndarray | None:
    """``data[key]``, from ``path``, as an array; None where there is none."""
    return None if data.get(key) is None else as_numpy(f"{path}, {key!r}", data[key])


def described(key: Any, value: Any) -> str:
    """An entry of a file in a few words, for people."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{key!r} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{key!r} ({type(value).__name__})"
