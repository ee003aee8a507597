"""Links that are held out of a store's topology, and the file they stand in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.arrow_files import needed_range, write_batches
from optimag_dist.store.layout import SPLITS, StoredFile

LINK_COLUMNS = {"part": pa.int8(), "source": pa.int64(), "target": pa.int64()}
_VAL, _TEST = SPLITS.index("val"), SPLITS.index("test")


@dataclass(frozen=True)
class LinkQueries:
    """Which of these nodes is linked with the source: the target or one of the negatives? Both ways of every link.

    ``sources`` (k,) int64 ascend, and so do ``targets`` (k,) for each of them. ``negatives`` (k, K): a row's are
    distinct and in random order, neither the source nor its neighbours in the graph with all its links, when they were
    drawn.
    """

    sources: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, rows: slice) -> "LinkQueries":
        return LinkQueries(self.sources[rows], self.targets[rows], self.negatives[rows])


@dataclass(frozen=True)
class LinkSplit:
    """Held-out links: ``val`` to choose a model by, and ``test`` to judge it by."""

    val: LinkQueries
    test: LinkQueries


def write_links(path: Path, queries: LinkQueries, num_val: int) -> StoredFile:
    """Write ``queries``, of which the first ``num_val`` are for validation, as one record batch."""
    row = pa.list_(pa.int64(), queries.negatives.shape[1])
    columns = {
        "part": pa.array(np.repeat(np.array([_VAL, _TEST], np.int8), [num_val, len(queries) - num_val])),
        "source": pa.array(queries.sources),
        "target": pa.array(queries.targets),
        "negatives": pa.FixedSizeListArray.from_arrays(pa.array(queries.negatives.reshape(-1)), type=row),
    }
    return write_batches(path, [columns])


def read_links(batch: pa.RecordBatch) -> LinkSplit:
    """What :func:`write_links` has written, as views of ``batch``."""
    sources, targets = (batch.column(name).to_numpy() for name in ("source", "target"))
    negatives = batch.column("negatives").flatten().to_numpy(zero_copy_only=True).reshape(len(sources), -1)
    queries = LinkQueries(sources, targets, negatives)
    num_val = int(np.searchsorted(batch.column("part").to_numpy(), _TEST))
    return LinkSplit(queries[:num_val], queries[num_val:])


def check_links(batches: Sequence[pa.RecordBatch], num_nodes: int) -> None:
    """Raise ValueError unless the one batch holds queries about nodes, those for validation first."""
    (batch,) = batches
    part = batch.column("part").to_numpy()
    needed_range("column 'part'", part, _VAL, _TEST + 1)
    if (part[1:] < part[:-1]).any():
        raise ValueError("column 'part' does not ascend")
    negatives = batch.column("negatives")
    if not pa.types.is_fixed_size_list(negatives.type) or negatives.type.value_type != pa.int64():
        raise ValueError(f"column 'negatives' is {negatives.type}, needed lists of int64")
    for name, column in (("source", batch.column("source")), ("target", batch.column("target"))):
        needed_range(f"column {name!r}", column.to_numpy(), 0, num_nodes)
    needed_range("column 'negatives'", negatives.flatten().to_numpy(zero_copy_only=True), 0, num_nodes)
    if negatives.null_count:
        raise ValueError("column 'negatives' has nulls")
