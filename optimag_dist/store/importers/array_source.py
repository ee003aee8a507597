"""A graph whose nodes are numbered and whose edges, features and labels are arrays."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.arrays import ArrayFeatures, RowSource
from optimag_dist.store.edges import BATCH_EDGES
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.layout import SPLITS
from optimag_dist.store.source import AttributeReader, FeatureReader, Labels
from optimag_dist.store.tables import BadRows
from optimag_dist.types import InputError


@dataclass(kw_only=True)
class ArraySource:
    """A :class:`GraphSource` of arrays; row i is node i.

    Attributes:
        edges: (m, 2) integers, source and target.
        user_ids: (n,) ids; by default 0, 1, …, n − 1.
        known_labels: the labels, if there are any.
        known_split: (n,) int8 position in ``SPLITS``, −1 for none.
        options: what the user said.
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
    num_edges: int = field(init=False)
    settings: str = field(init=False)
    resident_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        if self.edges.dtype.kind not in "iu" or len(self.edges.shape) != 2 or self.edges.shape[1] != 2:
            raise InputError(
                f"{self.edge_file}: edges must be integers of shape (edges, 2), got {self.edges.dtype} "
                f"{self.edges.shape}"
            )
        if self.edges.shape[0] == 0:
            raise InputError(f"{self.edge_file}: there are no edges, and so no structure to align with")
        if not self.modalities:
            raise InputError(
                f"{self.edge_file}: no features of nodes were found; name a file with features.NAME=FILE.npy"
            )

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
        """(sources, targets), each (k,) int64.

        Raises:
            InputError: after the last batch, an endpoint below 0 or beyond the last node.
        """
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
    """Integer labels with −1 or NaN for unlabelled; without ``classes`` those of the distinct numbers.

    Raises:
        InputError: not one label per node, none at all, fractions, or a number without a class.
    """
    if y is None:
        return None
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (num_nodes,) or y.dtype.kind not in "iufb":
        raise InputError(
            f"{place}: needed one whole number per node ({num_nodes:,} nodes), got {y.dtype} of shape {y.shape}"
        )
    unlabelled = np.isnan(y) if y.dtype.kind == "f" else np.zeros(num_nodes, bool)
    known = np.where(unlabelled, -1, y)
    numbers = known.astype(np.int64)
    if (known != numbers).any():
        row = int(np.flatnonzero(known != numbers)[0])
        raise InputError(f"{place}, row {row + 1}: the label {y[row]} is not whole")
    unlabelled |= numbers < 0
    if unlabelled.all():
        raise InputError(f"{place}: not one label; drop the array or fill it")
    if classes is None:
        distinct = np.unique(numbers[~unlabelled])
        codes = np.searchsorted(distinct, numbers)
        names = tuple(str(number) for number in distinct)
    else:
        beyond = np.flatnonzero(numbers >= len(classes))
        if len(beyond):
            row = int(beyond[0])
            raise InputError(f"{place}, row {row + 1}: the label {numbers[row]} has no class; there are {len(classes)}")
        codes, names = numbers, tuple(classes)
    return Labels(np.where(unlabelled, -1, codes).astype(np.int32), names)


def split_of(place: str, parts: Mapping[str, np.ndarray | None], num_nodes: int) -> np.ndarray | None:
    """(n,) int8 of a mask or a list of nodes for each of ``SPLITS``, −1 for none; None without any.

    Raises:
        InputError: a mask of another shape, a node that does not exist or that stands in two parts.
    """
    if all(part is None for part in parts.values()):
        return None
    split = np.full(num_nodes, -1, np.int8)
    for code, part in enumerate(SPLITS):
        chosen = parts.get(part)
        if chosen is None:
            continue
        if chosen.dtype.kind == "b" and chosen.shape == (num_nodes,):
            nodes = np.flatnonzero(chosen)
        elif chosen.dtype.kind in "iu" and chosen.ndim == 1:
            nodes = chosen
        else:
            raise InputError(
                f"{place}: the {part} part must be a mask of {num_nodes:,} nodes or a list of nodes, got "
                f"{chosen.dtype} of shape {chosen.shape}; of several splits keep one"
            )
        if len(nodes) and (nodes.min() < 0 or nodes.max() >= num_nodes):
            raise InputError(f"{place}: the {part} part names a node outside 0 … {num_nodes - 1}")
        twice = nodes[split[nodes] >= 0]
        if len(twice):
            raise InputError(f"{place}: node {twice[0]} stands in {SPLITS[split[twice[0]]]} and in {part}")
        split[nodes] = code
    return split
