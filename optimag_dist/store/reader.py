"""The graph store as the rest of the program sees it: memory-mapped, read-only, opened by path."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimag_dist.remote_copies import local_copy
from optimag_dist.storage import AnyPath, RemotePath, located
from optimag_dist.store.arrow_files import ArrowMap, needed_range
from optimag_dist.store.bad_rows import shown
from optimag_dist.store.columns import COLUMNS, Columns, ColumnSums, check_columns, read_columns
from optimag_dist.store.csr import check_rows
from optimag_dist.store.ids import NodeIds
from optimag_dist.store.layout import (
    AGAIN,
    ATTRIBUTE_ROWS,
    BATCH_ROWS,
    LINKS,
    NODES,
    SPLITS,
    TOPOLOGY,
    Modality,
    StoreMeta,
    attribute_file,
    read_meta,
)
from optimag_dist.store.link_queries import LINK_COLUMNS, LinkSplit, check_links, read_links
from optimag_dist.types import CSR, InputError


class GraphStore:
    """A multimodal attributed graph on disk. Open it with :meth:`open`.

    Opening maps files and reads nothing; arrays handed out are read-only views of the maps unless said otherwise. What
    is read is verified before, once for each file, user and host (:mod:`optimag_dist.integrity`), and every method
    raises ``InputError`` where a file it reads is damaged. Node ids are (k,) int64, in any order, repeats allowed; one
    outside 0 … n − 1 is an ``IndexError``. Pickles as its location, so that it may travel to other processes for
    nothing; another host copies a remote one to its own cache.

    Attributes:
        location: absolute path of the directory, or the URI it was opened by.
        path: of the directory on this host; for a URI, its copy in the cache.
        name: as in the schema it was ingested with.
        num_nodes, num_arcs: n and m; an undirected edge is two arcs.
        directed: whether the input was.
        content_hash: sha256 of the content: equal for equal graphs, whatever their name and path.
        modalities, attributes: name → :class:`Modality`, in the order of the schema; name → ``text`` or ``image``.
        classes: the labels as text; empty when the store has none.
    """

    def __init__(self, path: Path, meta: StoreMeta, location: AnyPath | None = None) -> None:
        self.path = path
        self.location = location or path
        self.name = meta.name
        self.num_nodes = meta.num_nodes
        self.num_arcs = meta.num_arcs
        self.directed = meta.directed
        self.content_hash = meta.content_hash
        self.modalities: Mapping[str, Modality] = {modality.name: modality for modality in meta.modalities}
        self.classes = meta.classes or ()
        self.attributes: Mapping[str, str] = dict(meta.attributes)
        self._meta = meta
        # Mapped now, not when first used: by then another store may stand at this path.
        self._maps = {file: self._map(file) for file in meta.files}
        self._columns: dict[str, Columns] = {}

    @classmethod
    def open(cls, path: str | AnyPath) -> "GraphStore":
        """Open the store at ``path``; one at a URI is copied to this host's cache, once. ``InputError``: there is none,
        it is of another format version, or a file of it is missing or truncated."""
        place = located(path)
        local = local_copy(place, _check_copy) if isinstance(place, RemotePath) else place.resolve()
        return cls(local, read_meta(local), place if isinstance(place, RemotePath) else local)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.location, self.content_hash)

    def __repr__(self) -> str:
        return f"GraphStore({str(self.path)!r}, {self.num_nodes:,} nodes, {self.num_arcs:,} arcs)"

    @cached_property
    def topology(self) -> CSR:
        """In-CSR: row v holds the sources u of the arcs u→v, ascending, no duplicates, no self loops. indptr (n + 1,)
        int64; indices (m,) int32 (int64 from 2³¹ nodes on)."""
        return _csr(self._maps[TOPOLOGY].batches()[0])

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(n,) int32 position in ``classes``, −1 for unlabelled; None when the store has no labels."""
        return None if self._meta.classes is None else self._nodes.column("label").to_numpy()

    @cached_property
    def split(self) -> np.ndarray | None:
        """(n,) int8: 0 train, 1 val, 2 test, −1 none; None when the store has no split."""
        return self._nodes.column("split").to_numpy() if self._meta.has_split else None

    @cached_property
    def links(self) -> LinkSplit | None:
        """Links held out of the topology, to be predicted; None when none are (``optimag split`` holds some out)."""
        return read_links(self._maps[LINKS].batches()[0]) if LINKS in self._maps else None

    def present(self, modality: str) -> np.ndarray:
        """(n,) bool: whether the node has a value in ``modality``."""
        return self._nodes.column(f"present:{self._modality(modality).name}").to_numpy().view(bool)

    def gather(self, modality: str, node_ids: np.ndarray) -> np.ndarray:
        """Feature rows of ``node_ids``: a new (k, width) array of the stored dtype; absent rows are zeros."""
        record = self._modality(modality)
        node_ids = self._checked(node_ids)
        file = self._maps[record.file]
        out = np.empty((len(node_ids), record.width), dtype=record.dtype)
        order = np.argsort(node_ids // BATCH_ROWS, kind="stable")
        number, local = np.divmod(node_ids[order], BATCH_ROWS)
        cuts = [*np.flatnonzero(np.diff(number, prepend=-1)), len(order)]
        for start, stop in itertools.pairwise(cuts):
            out[order[start:stop]] = file.matrix(record.name, int(number[start]))[local[start:stop]]
        return out

    def feature_file(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """A modality's rows where they lie, for kernels that read them there: the part of the mapped file that holds
        them, flat, of the stored dtype; and (batches,) int64: where in it each batch of ``BATCH_ROWS`` rows begins."""
        record = self._modality(modality)
        return self._maps[record.file].flat(record.name)

    @property
    def node_columns(self) -> Mapping[str, pa.Array]:
        """Name → column of ``nodes.arrow``."""
        return dict(zip(self._nodes.schema.names, self._nodes.columns, strict=True))

    def columns(self, modality: str) -> Columns:
        """Mean and spread of a modality's columns; a store of an earlier version is read through for them, once."""
        if modality not in self._columns:
            record = self._modality(modality)
            if record.columns_file in self._maps:
                self._columns[modality] = read_columns(self._maps[record.columns_file].batches()[0])
            else:
                sums, present, file = ColumnSums(), self.present(modality), self._maps[record.file]
                for index, first in enumerate(range(0, self.num_nodes, BATCH_ROWS)):
                    sums.add(file.matrix(record.name, index), present[first : first + BATCH_ROWS])
                self._columns[modality] = sums.columns()
        return self._columns[modality]

    @property
    def id_column(self) -> pa.Array:
        """(n,) int64 or large_string: the users' ids."""
        return self._nodes.column("id")

    def ids(self, node_ids: np.ndarray) -> list[Any]:
        """The users' ids (all str or all int) of ``node_ids``."""
        return self._nodes.column("id").take(pa.array(self._checked(node_ids))).to_pylist()

    def lookup(self, user_ids: Iterable[Any], *, is_text: bool = False) -> np.ndarray:
        """(k,) int64 node ids of the users' ids. ``is_text`` tells that they come from where nothing has a type, such
        as a command line, so that an integer is named by its digits. ``InputError`` about an id that no node has, or of
        another type."""
        user_ids = list(user_ids)
        if not user_ids:
            return np.zeros(0, np.int64)
        known = NodeIds(self.id_column)
        try:
            wanted = pa.array(user_ids)
            found = known.find(wanted, is_text)
            problem = f"got {wanted.type}"
        except (pa.ArrowException, OverflowError) as error:
            found, problem = None, str(error)
        if found is None:
            raise InputError(f"{self.path}: its ids are {known.kind}, such as {shown(known.ids[0].as_py())}: {problem}")
        positions, unknown = found
        missing = np.flatnonzero(unknown)
        if len(missing):
            more = f" ({len(missing) - 1:,} more such ids)" if len(missing) > 1 else ""
            value = user_ids[missing[0]]
            raise InputError(f"{self.path}: no node has the id {shown(value)}{more}{known.near_miss(value)}")
        return positions

    def attribute(self, name: str, node_ids: np.ndarray) -> list[Any]:
        """Attribute ``name`` of ``node_ids``: str (text) or bytes (image), None where there is none."""
        file = self._attribute_file(name)
        places = (divmod(int(node), ATTRIBUTE_ROWS) for node in self._checked(node_ids))
        return [file.batch(batch).column(0)[row].as_py() for batch, row in places]

    def has_attribute(self, name: str) -> np.ndarray:
        """(n,) bool: whether the node's attribute ``name`` is there and not empty; verifies the values of all."""
        lengths = (pc.binary_length(batch.column(0)) for batch in self._attribute_file(name).batches())
        return np.concatenate([length.fill_null(0).to_numpy() > 0 for length in lengths])

    def verify(self) -> None:
        """Read everything and compare it with the recorded checksums and digests, whatever was verified before."""
        for file in self._maps.values():
            file.verify()

    def verify_once(self) -> None:
        """Verify every file that has not been verified on this host, as reading all of it does."""
        for file in self._maps.values():
            file.verify_once()

    def notes(self, modality: str) -> dict[str, str]:
        """What the file of ``modality`` says it was made from; nothing where it was ingested."""
        return self._maps[self._modality(modality).file].metadata()

    def summary(self) -> str:
        n = self.num_nodes
        linked = np.diff(self.topology.indptr) > 0
        linked[self.topology.indices] = True
        kind = "directed" if self.directed else f"{self.num_arcs // 2:,} undirected edges stored both ways"
        lines = [f"{self.name}: {n:,} nodes ({n - int(linked.sum()):,} isolated), {self.num_arcs:,} arcs ({kind})"]
        for modality in self.modalities.values():
            missing = n - int(np.count_nonzero(self.present(modality.name)))
            lines.append(
                f"  modality {modality.name}: {modality.width} × {modality.dtype}, "
                f"missing in {missing:,} nodes ({missing / n:.1%})"
            )
        if self.labels is not None:
            lines.append(f"  labels: {len(self.classes)} classes, {int((self.labels >= 0).sum()):,} nodes labelled")
        if self.split is not None:
            sizes = [f"{name} {int((self.split == code).sum()):,}" for code, name in enumerate(SPLITS)]
            lines.append(f"  split: {', '.join(sizes)}, none {int((self.split < 0).sum()):,}")
        if self.links is not None:
            # Every link is asked both ways.
            val, test = len(self.links.val) // 2, len(self.links.test) // 2
            negatives = self.links.val.negatives.shape[1]
            lines.append(f"  held-out links: val {val:,}, test {test:,}, {negatives:,} negatives each")
        if self.attributes:
            lines.append(f"  attributes: {', '.join(f'{name} ({kind})' for name, kind in self.attributes.items())}")
        return "\n".join([*lines, f"  content hash: {self.content_hash[:16]}"])

    @cached_property
    def _nodes(self) -> pa.RecordBatch:
        return self._maps[NODES].batches()[0]

    def _map(self, file: str) -> ArrowMap:
        path, stored, n = self.path / file, self._meta.files[file], self.num_nodes
        if file == NODES:
            bounds = f"{len(self.classes)} classes"
            return ArrowMap(path, stored, self._node_columns(), n, None, AGAIN, check=self._check_nodes, bounds=bounds)
        if file == TOPOLOGY:
            kind = pa.large_list(pa.int32() if n < 2**31 else pa.int64())
            bounds = f"{self.num_arcs} arcs"
            return ArrowMap(path, stored, {"sources": kind}, n, None, AGAIN, check=self._check_topology, bounds=bounds)
        if file == LINKS:
            check, bounds = partial(check_links, num_nodes=n), f"{n} nodes"
            return ArrowMap(path, stored, LINK_COLUMNS, None, None, AGAIN, check=check, bounds=bounds)
        for modality in self.modalities.values():
            if file == modality.columns_file:
                return ArrowMap(path, stored, COLUMNS, modality.width, None, AGAIN, check=check_columns)
            if file == modality.file:
                row = pa.list_(pa.from_numpy_dtype(np.dtype(modality.dtype)), modality.width)
                return ArrowMap(path, stored, {modality.name: row}, n, BATCH_ROWS, AGAIN)
        name = next(name for name in self.attributes if file == attribute_file(name))
        kind = pa.large_string() if self.attributes[name] == "text" else pa.large_binary()
        return ArrowMap(path, stored, {name: kind}, n, ATTRIBUTE_ROWS, AGAIN, nulls=True)

    def _node_columns(self) -> dict[str, pa.DataType]:
        columns = {"id": pa.int64() if self._meta.id_type == "int64" else pa.large_string()}
        if self._meta.classes is not None:
            columns["label"] = pa.int32()
        if self._meta.has_split:
            columns["split"] = pa.int8()
        return columns | {f"present:{name}": pa.uint8() for name in self.modalities}

    def _check_nodes(self, batches: Sequence[pa.RecordBatch]) -> None:
        limits = {"label": (-1, len(self.classes)), "split": (-1, len(SPLITS))}
        for name in self._node_columns().keys() - {"id"}:
            needed_range(f"column {name!r}", batches[0].column(name).to_numpy(), *limits.get(name, (0, 2)))

    def _check_topology(self, batches: Sequence[pa.RecordBatch]) -> None:
        topology = _csr(batches[0])
        if topology.num_arcs != self.num_arcs:
            raise ValueError(f"{topology.num_arcs} arcs, needed {self.num_arcs}")
        check_rows(topology, self.num_nodes)

    def _attribute_file(self, name: str) -> ArrowMap:
        if name not in self.attributes:
            raise InputError(f"{self.path}: no attribute {name!r}; it has {', '.join(self.attributes) or 'none'}")
        return self._maps[attribute_file(name)]

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise InputError(f"{self.path}: no modality {name!r}; it has {', '.join(self.modalities)}")
        return self.modalities[name]

    def _checked(self, node_ids: np.ndarray) -> np.ndarray:
        node_ids = np.asarray(node_ids)
        if node_ids.ndim != 1 or (len(node_ids) and node_ids.dtype.kind not in "iu"):
            raise InputError(f"node_ids: needed (k,) integers, got {node_ids.dtype} of shape {node_ids.shape}")
        node_ids = node_ids.astype(np.int64, copy=False)
        if len(node_ids) and not (node_ids.min() >= 0 and node_ids.max() < self.num_nodes):
            raise IndexError(f"node ids must lie in 0 … {self.num_nodes - 1}, got {node_ids.min()} … {node_ids.max()}")
        return node_ids


def _csr(batch: pa.RecordBatch) -> CSR:
    rows = batch.column(0)
    return CSR(rows.offsets.to_numpy(), rows.values.to_numpy())


def _check_copy(path: Path) -> None:
    GraphStore(path, read_meta(path)).verify_once()


def _reopen(path: AnyPath, content_hash: str) -> GraphStore:
    store = GraphStore.open(path)
    if store.content_hash != content_hash:
        raise InputError(f"{path}: the store was replaced by another one while in use; start again")
    return store
