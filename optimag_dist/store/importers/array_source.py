"""A graph whose nodes are numbered and whose edges, features and labels are arrays."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from optimag_dist.imported import absolute
from optimag_dist.options import Options
from optimag_dist.store.arrays import ArrayFeatures, NpyRows, RowSource
from optimag_dist.store.bad_rows import BadRows, listed
from optimag_dist.store.edges import BATCH_EDGES
from optimag_dist.store.layout import SPLITS, check_names
from optimag_dist.store.source import AttributeReader, FeatureReader, Labels
from optimag_dist.types import InputError


class ImportOptions(Options):
    """Changes to what an importer finds, given as ``key=value``.

    Attributes:
        importer: what reads the source, a layout of ours or ``file.py:name`` (docs/extending.md); by default found out.
        name: the graph's; by default that of the file or folder.
        directed: whether source and target differ in meaning; by default what the layout says.
        features: modality → ``.npy`` file of shape (nodes, width), relative to the source's folder, in place of the
            modality found or beside it.
        encoder: MAGB, OpenMAG, MM-Graph: whose features to take where there are several, such as ``t5vit`` for
            ``t5vit_feat.pt``, or a part of the name that one file has alone; of several, the first that is there.
        split: OGB: folder under ``split/``, where there are several.
    """

    importer: Annotated[str, AfterValidator(absolute)] | None = None
    name: str | None = None
    directed: bool | None = None
    features: Mapping[str, str] = {}
    encoder: str | tuple[str, ...] | None = None
    split: str | None = None


@dataclass(kw_only=True)
class ArraySource:
    """A :class:`GraphSource` of arrays; row i is node i. Modalities that the user names in the options come on top.

    Attributes:
        edges: (m, 2) integers, source and target.
        user_ids: (n,) ids; by default 0, 1, …, n − 1.
        known_split: (n,) int8 position in ``SPLITS``, −1 for none.
        folder: that the options' files are relative to; by default that of ``edge_file``.
        unused: what else the file holds, in words such as ``'year' int64 (50,)``; it is said and otherwise ignored.
    """

    name: str
    edge_file: Path
    directed: bool | None
    num_nodes: int
    edges: RowSource
    modalities: Mapping[str, FeatureReader]
    inputs: tuple[Path, ...]
    options: ImportOptions
    known_labels: Labels | None = None
    known_split: np.ndarray | None = None
    user_ids: pa.Array | None = None
    attributes: Mapping[str, AttributeReader] = field(default_factory=dict)
    folder: Path | None = None
    unused: Sequence[str] = ()
    num_edges: int = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    settings: str = field(init=False)
    resident_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        if self.edges.dtype.kind not in "iu" or len(self.edges.shape) != 2 or self.edges.shape[1] != 2:
            raise InputError(
                f"{self.edge_file}: edges must be integers of shape (edges, 2), numbers of nodes counted from 0; got "
                f"{self.edges.dtype} {self.edges.shape}"
            )
        folder = self.folder or self.edge_file.parent
        given = {name: folder / file for name, file in self.options.features.items()}
        self.modalities = dict(self.modalities) | {
            name: ArrayFeatures(file, NpyRows(file), self.num_nodes, "the graph") for name, file in given.items()
        }
        self.inputs = (*self.inputs, *given.values())
        if self.edges.shape[0] == 0:
            raise InputError(f"{self.edge_file}: there are no edges, and so no structure to align with")
        if not self.modalities:
            raise InputError(
                f"{self.edge_file}: no features of nodes were found; name a file with features.NAME=FILE.npy"
                + (f". Not used: {listed(self.unused, 12, str)}" if self.unused else "")
            )
        for names in (self.modalities, self.attributes):
            check_names(names, f"{self.edge_file}: ")

        self.notes = (f"{self.edge_file}: not used: {listed(self.unused, 12, str)}",) if self.unused else ()
        self.num_edges = self.edges.shape[0]
        self.settings = json.dumps([self.options.model_dump(mode="json"), sorted(self.modalities), self.directed])
        features = [reader for reader in self.modalities.values() if isinstance(reader, ArrayFeatures)]
        self.resident_bytes = self.edges.resident_bytes + sum(reader.resident_bytes for reader in features)

    def ids(self) -> pa.Array:
        return pa.array(np.arange(self.num_nodes)) if self.user_ids is None else self.user_ids

    def labels(self) -> Labels | None:
        return self.known_labels

    def split(self) -> np.ndarray | None:
        return self.known_split

    def edge_batches(self, ids: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sources, targets), each (k,) int64; after the last, ``InputError`` about an end that is no node."""
        n = len(ids)
        bad = BadRows(self.edge_file, "")
        first = 0
        for block in self.edges.blocks(BATCH_EDGES):
            outside = (block < 0) | (block >= n)
            rows = np.flatnonzero(outside.any(axis=1))
            bad.add(
                "outside",
                rows + first,
                lambda row, block=block, first=first: (  # type: ignore[misc]
                    f"the edge {block[row - first].tolist()} has an end outside 0 … {n - 1}, the numbers of the nodes"
                ),
            )
            block = np.where(outside, 0, block).astype(np.int64)
            first += len(block)
            yield block[:, 0], block[:, 1]
        bad.raise_if_any()


def labels_of(place: str, y: np.ndarray | None, num_nodes: int, classes: Sequence[str] | None = None) -> Labels | None:
    """Whole numbers with −1 or NaN for unlabelled; without ``classes`` those of the distinct numbers. ``InputError``:
    not one label per node, none at all, fractions, negative ones but −1, or a number without a class."""
    if y is None:
        return None
    y = _flat(y)
    if y.shape != (num_nodes,) or y.dtype.kind not in "iufb":
        raise InputError(f"{place}: needed one whole number per node ({num_nodes:,} nodes), got {y.dtype} {y.shape}")
    unlabelled = np.isnan(y) if y.dtype.kind == "f" else np.zeros(num_nodes, bool)
    known = np.where(unlabelled, -1, y.astype(np.float64)) if y.dtype.kind == "f" else y
    _refuse_first(place, known != np.floor(known), lambda row: f"the label {y[row]} is not whole")
    # Codes are stored in 32 bits, and no classes are that many.
    _refuse_first(place, known >= 2**31, lambda row: f"the label {y[row]} is no number of a class; they end at 2³¹")
    _refuse_first(place, known < -1, lambda row: f"the label is {y[row]}; below 0 only −1 has a meaning: no label")
    numbers = known.astype(np.int64)
    unlabelled |= numbers < 0
    if unlabelled.all():
        raise InputError(f"{place}: not one label; drop the array or fill it")
    if classes is None:
        distinct = np.unique(numbers[~unlabelled])
        codes = np.searchsorted(distinct, numbers)
        names = tuple(str(number) for number in distinct)
    else:
        wrong = numbers >= len(classes)
        _refuse_first(place, wrong, lambda row: f"the label {numbers[row]} has no class; there are {len(classes)}")
        codes, names = numbers, tuple(classes)
    return Labels(np.where(unlabelled, -1, codes).astype(np.int32), names)


def of_encoder(folder: Path, files: Mapping[str, str], options: ImportOptions, also: str = "") -> str:
    """Of ``files`` (file → encoder's name), the only one or that of ``options.encoder``; ``InputError`` where several
    are left, which says what ``also`` would choose."""
    wanted = (options.encoder,) if isinstance(options.encoder, str) else options.encoder or ()
    for encoder in wanted:
        chosen = [file for file, name in files.items() if name == encoder]
        chosen = chosen or [file for file, name in files.items() if encoder.lower() in name.lower()]
        if len(chosen) == 1:
            return chosen[0]
    # A list says what is preferred; a single name is meant.
    if len(files) == 1 and not isinstance(options.encoder, str):
        return next(iter(files))
    given = f" (encoder={', '.join(wanted)} is none or several of them)" if wanted else ""
    raise InputError(
        f"{folder}: several encoders, {', '.join(files.values())}{given}; choose with encoder=NAME"
        + (f" or {also}" if also else "")
    )


_MASKS = "a mask of 0 and 1 is called train_mask, val_mask or test_mask"
_LISTS = "a list of nodes is called train_idx, val_idx or test_idx"
# How the keys of parts begin in the files of others.
_PART_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
SPLIT_KEYS = tuple(f"{name}_{kind}" for names in _PART_KEYS.values() for name in names for kind in ("mask", "idx"))


def split_of(place: str, arrays: Mapping[str, np.ndarray | None], num_nodes: int) -> np.ndarray | None:
    """(n,) int8 position in ``SPLITS``, −1 for none; None without any of ``SPLIT_KEYS`` in ``arrays``. ``<part>_mask``
    has a boolean, or 0 or 1, for every node; ``<part>_idx`` lists the part's nodes. ``InputError`` about a mask or list
    of another shape or with other numbers, and a node that stands in two parts or twice in a list."""
    split = None
    for code, part in enumerate(SPLITS):
        keys = [f"{name}_{kind}" for name in _PART_KEYS[part] for kind in ("mask", "idx")]
        given = {key: array for key in keys if (array := arrays.get(key)) is not None}
        if len(given) > 1:
            raise InputError(f"{place}: {' and '.join(map(repr, given))} both say which nodes are {part}; keep one")
        for key, array in given.items():
            read = _mask if key.endswith("mask") or array.dtype.kind == "b" else _listed_nodes
            chosen = read(f"{place}, {key!r}", array, num_nodes)
            split = np.full(num_nodes, -1, np.int8) if split is None else split
            twice = np.flatnonzero(chosen & (split >= 0))
            if len(twice):
                raise InputError(f"{place}: node {twice[0]} stands in {SPLITS[split[twice[0]]]} and in {part}")
            split[chosen] = code
    return split


def _mask(place: str, values: np.ndarray, num_nodes: int) -> np.ndarray:
    if values.ndim == 2 and values.shape[0] == num_nodes and values.shape[1] > 1:
        raise InputError(f"{place}: {values.shape[1]} splits, one a column; save the one you mean, such as mask[:, 0]")
    values = _flat(values)
    if values.shape != (num_nodes,) or values.dtype.kind not in "biuf":
        raise InputError(
            f"{place}: needed a mask, true or false for {num_nodes} nodes, got {values.dtype} {values.shape}; {_LISTS}"
        )
    _refuse_first(place, (values != 0) & (values != 1), lambda row: f"a mask has 0 and 1, got {values[row]}; {_LISTS}")
    return values.astype(bool)


def _listed_nodes(place: str, values: np.ndarray, num_nodes: int) -> np.ndarray:
    values = _flat(values)
    if values.size == 0:
        return np.zeros(num_nodes, bool)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"{place}: needed a list of nodes, whole numbers, got {values.dtype} {values.shape}; {_MASKS}")
    wrong = (values < 0) | (values >= num_nodes)
    _refuse_first(place, wrong, lambda row: f"there is no node {values[row]}; they are 0 … {num_nodes - 1}")
    chosen = np.zeros(num_nodes, bool)
    chosen[values] = True
    if chosen.sum() < len(values):
        row = int(np.setdiff1d(np.arange(len(values)), np.unique(values, return_index=True)[1])[0])
        raise InputError(f"{place}, row {row + 1}: node {values[row]} is there twice, and a list has it once; {_MASKS}")
    return chosen


def _flat(values: np.ndarray) -> np.ndarray:
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _refuse_first(place: str, wrong: np.ndarray, describe: Callable[[int], str]) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" ({len(rows) - 1:,} more such rows)" if len(rows) > 1 else ""
        raise InputError(f"{place}, row {rows[0] + 1}: {describe(int(rows[0]))}{more}")


def num_nodes_of(place: str, per_node: Mapping[str, tuple[int, ...]]) -> int:
    """The rows of the first of the arrays, whose shapes are given; ``InputError`` where it has none."""
    key, shape = next(iter(per_node.items()))
    if not shape:
        raise InputError(f"{place}, {key!r}: needed one row per node, got a single value")
    return shape[0]
