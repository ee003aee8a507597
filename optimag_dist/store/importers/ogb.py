"""OGB node property prediction: a dataset's folder as it is downloaded, with ``raw/`` and ``split/``."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from optimag_dist.store.arrays import ArrayFeatures
from optimag_dist.store.importers.array_source import ArraySource, labels_of, split_of
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.tables import reading
from optimag_dist.types import InputError


def is_ogb(folder: Path) -> bool:
    return (folder / "raw" / "edge.csv.gz").is_file()


def open_ogb(folder: Path, options: ImportOptions) -> ArraySource:
    """``raw/{edge,num-node-list,num-edge-list,node-feat,node-label}.csv.gz`` and one folder under ``split/``.

    The features become the modality ``feat``. The format does not say whether edges have a direction: they are taken
    to have none, as ogbn-arxiv and ogbn-products are used, unless the options say otherwise.

    Layout: https://github.com/snap-stanford/ogb, ogb/io/read_graph_raw.py and ogb/nodeproppred/dataset.py.

    Raises:
        InputError: a file is missing or damaged, there are several graphs, or a label is no whole number.
    """
    raw = folder / "raw"
    counts = {}
    for what in ("node", "edge"):
        path = raw / f"num-{what}-list.csv.gz"
        numbers = _read(path, pa.int64())
        if numbers.size != 1:
            raise InputError(f"{path}: needed one graph, got {len(numbers)}")
        counts[what] = int(numbers[0, 0])
    n = counts["node"]
    modalities = options.given_features(folder, n)
    features, label = raw / "node-feat.csv.gz", raw / "node-label.csv.gz"
    inputs = [raw / "edge.csv.gz", *(raw / f"num-{what}-list.csv.gz" for what in counts)]
    if features.is_file():
        rows = _CsvRows(features, n, pa.float32())
        modalities = {"feat": ArrayFeatures(features, rows, n, "the graph")} | modalities
        inputs.append(features)
    if label.is_file():
        inputs.append(label)
    parts = _split_files(folder, options)
    return ArraySource(
        name=options.name or folder.resolve().name,
        edge_file=inputs[0],
        directed=bool(options.directed),
        num_nodes=n,
        edges=_CsvRows(inputs[0], counts["edge"], pa.int64()),
        modalities=modalities,
        inputs=(*inputs, *parts.values(), *options.feature_files(folder)),
        options=options,
        known_labels=labels_of(str(label), _read(label, pa.float64()), n) if label.is_file() else None,
        known_split=split_of(
            str(folder / "split"), {part: _read(path, pa.int64()).reshape(-1) for part, path in parts.items()}, n
        ),
    )


def _split_files(folder: Path, options: ImportOptions) -> dict[str, Path]:
    schemes = sorted(path.name for path in (folder / "split").glob("*") if path.is_dir())
    if not schemes and options.split is None:
        return {}
    if options.split is None and len(schemes) > 1:
        raise InputError(f"{folder / 'split'}: several splits, {', '.join(schemes)}; choose with split=NAME")
    scheme = options.split or schemes[0]
    return {
        part: folder / "split" / scheme / f"{name}.csv.gz"
        for part, name in {"train": "train", "val": "valid", "test": "test"}.items()
    }


class _CsvRows:
    """A matrix in a compressed CSV file without a header, streamed."""

    resident_bytes = 0

    def __init__(self, path: Path, rows: int, kind: pa.DataType) -> None:
        self._path, self._kind = path, kind
        with reading(path):
            width = _open(path, kind).schema
        self.shape: tuple[int, ...] = (rows, len(width))
        self.dtype = np.dtype(kind.to_pandas_dtype())

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        held, count, total = [], 0, 0
        for block in _blocks(self._path, self._kind):
            total += len(block)
            while len(block):
                part = block[: rows - count]
                block = block[len(part) :]
                held.append(part)
                count += len(part)
                if count == rows:
                    yield np.concatenate(held)
                    held, count = [], 0
        if total != self.shape[0]:
            raise InputError(
                f"{self._path}: has {total:,} rows, but the list of numbers beside it says {self.shape[0]:,}"
            )
        if held:
            yield np.concatenate(held)


def _read(path: Path, kind: pa.DataType) -> np.ndarray:
    return np.concatenate(list(_blocks(path, kind)))


def _blocks(path: Path, kind: pa.DataType) -> Iterator[np.ndarray]:
    with reading(path):
        batches = _open(path, kind)
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        columns = [column.cast(kind).fill_null(math.nan if pa.types.is_floating(kind) else 0) for column in batch]
        yield np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)


def _open(path: Path, kind: pa.DataType) -> pyarrow.csv.CSVStreamingReader:
    # Names come from the first line, types are given for as many columns as there are.
    read = pyarrow.csv.ReadOptions(autogenerate_column_names=True, block_size=1 << 24)
    names = pyarrow.csv.open_csv(path, read_options=read).schema.names
    return pyarrow.csv.open_csv(
        path,
        read_options=read,
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, kind)),
    )
