"""Mean and spread of a modality's columns over the nodes that have it: models scale its features by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.arrow_files import write_batches
from optimag_dist.store.layout import StoredFile

#: Columns of the file that holds them.
COLUMNS = {"mean": pa.float64(), "spread": pa.float64()}
# Numbers that are added up at a time, as float64: 2 MB.
_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Columns:
    """(width,) float64 each; ``spread`` is the standard deviation, exactly 0 where all nodes have the same number."""

    mean: np.ndarray
    spread: np.ndarray


class ColumnSums:
    """Adds up blocks of a modality's rows, in the order in which they come."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, block: np.ndarray, present: np.ndarray) -> None:
        """(k, width) rows as they are stored, and (k,) bool which of them are there."""
        rows = block if present.all() else block[present]
        if not len(rows):
            return
        if not self._count:
            # Sums are of the differences from one of the rows: exact where a column is constant, and no worse than the
            # spread itself where the mean is far from 0.
            self._first = rows[0].astype(np.float64)
            self._sum, self._squares = np.zeros_like(self._first), np.zeros_like(self._first)
        step = max(1, _AT_ONCE // rows.shape[1])
        for start in range(0, len(rows), step):
            differences = rows[start : start + step] - self._first
            self._sum += differences.sum(axis=0)
            self._squares += np.einsum("ij,ij->j", differences, differences)
        self._count += len(rows)

    def columns(self) -> Columns:
        """Of the rows so far, at least one."""
        offset = self._sum / self._count
        variance = self._squares / self._count - offset**2
        return Columns(self._first + offset, np.sqrt(np.maximum(variance, 0)))


def write_columns(path: Path, columns: Columns) -> StoredFile:
    """Write the file of a store that :func:`read_columns` reads."""
    return write_batches(path, [{"mean": pa.array(columns.mean), "spread": pa.array(columns.spread)}])


def check_columns(batches: Sequence[pa.RecordBatch]) -> None:
    """Raise ValueError where a value cannot be."""
    columns = read_columns(batches[0])
    if not (np.isfinite(columns.mean).all() and np.isfinite(columns.spread).all() and (columns.spread >= 0).all()):
        raise ValueError("a mean or a spread that cannot be")


def read_columns(batch: pa.RecordBatch) -> Columns:
    """The one batch of such a file."""
    return Columns(batch.column("mean").to_numpy(), batch.column("spread").to_numpy())
