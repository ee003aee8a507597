"""OGB node property prediction: a dataset's folder as it is downloaded, with ``raw/`` and ``split/``."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from optimag_dist.store.arrays import ArrayFeatures, recut
from optimag_dist.store.bad_rows import reading
from optimag_dist.store.importers.array_source import ArraySource, ImportOptions, labels_of, split_of
from optimag_dist.store.tables import null_rows
from optimag_dist.types import InputError

_EDGES = "edge.csv.gz"
# What only datasets of several kinds of nodes have, such as ogbn-mag.
_SEVERAL_KINDS = ("num-node-dict.csv.gz", "triplet-list.csv.gz")


def is_ogb(folder: Path) -> bool:
    return any((folder / "raw" / name).is_file() for name in (_EDGES, *_SEVERAL_KINDS))


def open_ogb(folder: Path, options: ImportOptions) -> ArraySource:
    """``raw/{edge,num-node-list,num-edge-list,node-feat,node-label}.csv.gz`` and one folder under ``split/``.

    The features become the modality ``feat``. The format does not say whether edges have a direction: they are taken
    to have none, as ogbn-arxiv and ogbn-products are used, unless the options say otherwise. ``InputError``: a file is
    missing or damaged, there are several graphs, or a label is no whole number.

    Layout: https://github.com/snap-stanford/ogb, ogb/io/read_graph_raw.py and ogb/nodeproppred/dataset.py.
    """
    raw = folder / "raw"
    if not (raw / _EDGES).is_file():
        raise InputError(
            f"{folder}: an OGB dataset with several kinds of nodes, and a store has one; write the nodes and edges of "
            "one kind as tables or .npz"
        )
    counts = {}
    for what in ("node", "edge"):
        path = raw / f"num-{what}-list.csv.gz"
        numbers = _read(path, pa.int64())
        if numbers.size != 1:
            raise InputError(
                f"{path}: needed the size of one graph, got {numbers.size:,} numbers; datasets of many graphs (ogbg) "
                "have no nodes to train on"
            )
        counts[what] = int(numbers[0, 0])
        if counts[what] < 1:
            raise InputError(f"{path}: needed at least one {what}, got {counts[what]}")
    n = counts["node"]
    modalities = {}
    features, label = raw / "node-feat.csv.gz", raw / "node-label.csv.gz"
    inputs = [raw / _EDGES, *(raw / f"num-{what}-list.csv.gz" for what in counts)]
    if features.is_file():
        modalities["feat"] = ArrayFeatures(features, _CsvRows(features, n, pa.float32()), n, "the graph")
        inputs.append(features)
    if label.is_file():
        inputs.append(label)
    parts, unused = _split_files(folder, options)
    unused += [f"raw/{path.name}" for path in sorted(raw.glob("*.csv.gz")) if path not in inputs]
    return ArraySource(
        name=options.name or folder.resolve().name,
        edge_file=inputs[0],
        directed=bool(options.directed),
        num_nodes=n,
        edges=_CsvRows(inputs[0], counts["edge"], pa.int64()),
        modalities=modalities,
        inputs=(*inputs, *parts.values()),
        options=options,
        folder=folder,
        known_labels=labels_of(str(label), _read(label, pa.float64()), n) if label.is_file() else None,
        known_split=split_of(
            str(folder / "split"), {f"{part}_idx": _read(path, pa.int64()) for part, path in parts.items()}, n
        ),
        unused=unused,
    )


def _split_files(folder: Path, options: ImportOptions) -> tuple[dict[str, Path], list[str]]:
    """The files of the parts, and what else is there, for people."""
    schemes = sorted(path.name for path in (folder / "split").glob("*") if path.is_dir())
    if not schemes and options.split is None:
        return {}, []
    if options.split is None and len(schemes) > 1:
        raise InputError(f"{folder / 'split'}: several splits, {', '.join(schemes)}; choose with split=NAME")
    scheme = folder / "split" / (options.split or schemes[0])
    # Link datasets split edges, in files of tensors; those to train on are the graph.
    if (scheme / "train.pt").is_file() and not (scheme / "train.csv.gz").is_file():
        return {}, [f"split/{scheme.name}/*.pt, which hold edges (optimag split holds links out anew)"]
    names = {"train": "train", "val": "valid", "test": "test"}
    return {part: scheme / f"{name}.csv.gz" for part, name in names.items()}, []


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
        total = 0
        for (block,) in recut(([block] for block in _blocks(self._path, self._kind)), np.concatenate, rows):
            total += len(block)
            yield block
        if total != self.shape[0]:
            raise InputError(f"{self._path}: has {total:,} rows, the list of numbers beside it says {self.shape[0]:,}")


def _read(path: Path, kind: pa.DataType) -> np.ndarray:
    return np.concatenate(list(_blocks(path, kind)))


def _blocks(path: Path, kind: pa.DataType) -> Iterator[np.ndarray]:
    first = 0
    with reading(path):
        for batch in _open(path, kind):
            nulls = [(int(null_rows(column)[0]), place) for place, column in enumerate(batch) if column.null_count]
            if nulls and pa.types.is_integer(kind):
                row, place = min(nulls)
                raise InputError(
                    f"{path}, row {first + row + 1}: cell {place + 1} of {batch.num_columns} is empty or NaN; needed a "
                    "whole number in every cell"
                )
            first += len(batch)
            # What is left of nulls becomes NaN.
            yield np.stack([column.cast(kind).to_numpy(zero_copy_only=False) for column in batch], axis=1)


def _open(path: Path, kind: pa.DataType) -> pyarrow.csv.CSVStreamingReader:
    # Names come from the first line, types are given for as many columns as there are.
    read = pyarrow.csv.ReadOptions(autogenerate_column_names=True, block_size=1 << 24)
    names = pyarrow.csv.open_csv(path, read_options=read).schema.names
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, kind))
    return pyarrow.csv.open_csv(path, read_options=read, convert_options=convert)
