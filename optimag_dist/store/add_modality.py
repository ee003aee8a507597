"""A graph store with one more modality, or another one in its place: everything else is shared with the old one."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.columns import ColumnSums, summed, write_columns
from optimag_dist.store.derive import derive_store
from optimag_dist.store.layout import BATCH_ROWS, NODES, Modality, check_names
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.writer import ArrowFile, write_batches
from optimag_dist.types import InputError


def check_modality_name(store: GraphStore, name: str) -> None:
    """Raise ``InputError`` unless ``store`` can have a modality called ``name``."""
    alike = [other for other in store.modalities if other.lower() == name.lower() and other != name]
    check_names([name, *alike], f"modality={name}: ")


def add_modality(
    store: GraphStore,
    modality: Modality,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    directory: Path,
    made_from: Mapping[str, str],
) -> GraphStore:
    """Write ``store`` with ``modality`` into the empty ``directory``; files that stay the same are hard links.

    Args:
        modality: takes the place of the one of its name, or comes last.
        blocks: (k, width) of the modality's dtype, finite, zeros in absent rows, and (k,) bool present; all nodes in
            order, cut anywhere.
        made_from: notes that are kept in the modality's file, see :meth:`GraphStore.notes`.

    Raises:
        InputError: no node has a value, or the store was replaced by another one meanwhile.
    """
    row = pa.list_(pa.from_numpy_dtype(modality.dtype), modality.width)
    present, sums = [], ColumnSums()
    with ArrowFile(directory / modality.file, pa.schema([(modality.name, row)], dict(made_from))) as file:
        for values, there in summed(in_batches(blocks, modality), sums):
            file.write(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=row))
            present.append(there)
    if not any(there.any() for there in present):
        raise InputError(f"{store.path}: no node has a value in modality {modality.name!r}; there is nothing to add")
    columns = {**store.node_columns, f"present:{modality.name}": pa.array(np.concatenate(present).view(np.uint8))}
    files = {
        modality.file: file.stored(),
        modality.columns_file: write_columns(directory / modality.columns_file, sums.columns()),
        NODES: write_batches(directory / NODES, [columns]),
    }
    modalities = tuple({**store.modalities, modality.name: modality}.values())
    return derive_store(store, directory, files, modalities=modalities)


def in_batches(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], modality: Modality
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``blocks`` cut anew into ``BATCH_ROWS`` rows, the last one shorter; an array may be used again after it."""
    values, present = np.empty((BATCH_ROWS, modality.width), modality.dtype), np.empty(BATCH_ROWS, bool)
    filled = 0
    for block, there in blocks:
        if filled == 0 and len(block) == BATCH_ROWS:
            yield block, there
            continue
        first = 0
        while first < len(block):
            count = min(len(block) - first, BATCH_ROWS - filled)
            values[filled : filled + count] = block[first : first + count]
            present[filled : filled + count] = there[first : first + count]
            first, filled = first + count, filled + count
            if filled == BATCH_ROWS:
                yield values, present.copy()
                filled = 0
    if filled:
        yield values[:filled], present[:filled]
