"""What ingest asks of a graph in somebody's files, whatever their layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from optimag_dist.store.bad_rows import BadRows
from optimag_dist.store.layout import StoredDtype


@dataclass(frozen=True)
class Labels:
    """Labels as numbers: ``codes`` (n,) int32 position in ``classes``, −1 for unlabelled."""

    codes: np.ndarray
    classes: tuple[str, ...]


class FeatureReader(Protocol):
    """One modality in the user's files: numbers per node, how the store keeps them, and a collector of the bad rows."""

    width: int
    dtype: StoredDtype
    bad: BadRows

    def blocks(self) -> Iterator[np.ndarray]:
        """(rows, width) floating blocks of at most ``BATCH_ROWS`` rows, exact; absent rows are all NaN."""

    def describe(self, position: int) -> tuple[str | None, str]:
        """How to name number ``position`` of a row: its own column, if it has one, and words."""


class AttributeReader(Protocol):
    """Raw text or pictures; ``inputs_known`` tells whether ``GraphSource.inputs`` names all files."""

    kind: Literal["text", "image"]
    inputs_known: bool

    def blocks(self) -> Iterator[pa.Array]:
        """large_string (text) or large_binary (pictures) blocks of ``ATTRIBUTE_ROWS`` rows."""


@runtime_checkable
class GraphSource(Protocol):
    """A graph in the user's files; opening it has read headers and counts, and nothing that grows with the edges.

    Attributes:
        edge_file: the file that messages about edges name.
        directed: None to call the graph undirected when every edge comes in both directions.
        num_nodes, num_edges: n, and rows of the edge list.
        modalities, attributes: name → reader; at least one modality.
        inputs: every file that is read.
        settings: what beside the files decides the result, as text.
        resident_bytes: what the source holds in memory while it is read, beside its ids.
    """

    name: str
    edge_file: Path
    directed: bool | None
    num_nodes: int
    num_edges: int
    modalities: Mapping[str, FeatureReader]
    attributes: Mapping[str, AttributeReader]
    inputs: tuple[Path, ...]
    settings: str
    resident_bytes: int

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about what is dropped or doubtful, complete when everything has been read."""

    def ids(self) -> pa.Array:
        """The users' ids, (n,) int64 or large_string."""

    def labels(self) -> Labels | None: ...

    def split(self) -> np.ndarray | None:
        """(n,) int8 position in ``SPLITS``, −1 for none; None without a split."""

    def edge_batches(self, ids: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sources, targets) of the edges, each (k,) int64 node ids."""
