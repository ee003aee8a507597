"""Where batches get a graph's rows from: a store mapped on this host, or owners elsewhere.

Only what a batch needs is asked for. Neighbours are drawn where the rows lie, so an owner sends ``fanout`` of a hub's
neighbours and not all of them; because a draw depends on key and node alone, it is the same draw everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from optimag_dist.sampling.kernels import draw, gather_float16, gather_rows
from optimag_dist.store import GraphStore
from optimag_dist.store.layout import Modality
from optimag_dist.types import CSR


class GraphDataSource(Protocol):
    """Rows of a graph by node id, (k,) int64; called from several threads at once.

    ``modalities`` are name → width and dtype of the stored features; ``topology`` is None where it is not mapped on
    this host.
    """

    @property
    def modalities(self) -> Mapping[str, Modality]: ...

    @property
    def topology(self) -> CSR | None: ...

    def neighbours(self, nodes: np.ndarray, fanout: int, key: int) -> tuple[np.ndarray, np.ndarray]:
        """:func:`draw_neighbours` of each node's row; the whole row where ``fanout`` is −1."""
        ...

    def degrees(self, nodes: np.ndarray) -> np.ndarray:
        """(k,) int64 neighbours of each node in the whole graph."""
        ...

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        """(k, width) float32; zeros where absent."""
        ...

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        """(k,) bool."""
        ...


class RecycledMemory:
    """Gives out float32 arrays in memory that no earlier one uses any more; at most as much as was in use at once.

    Fresh memory of tens of megabytes per batch comes from the system page by page and zeroed each time, which costs as
    much as filling it: without, batches of 1,024 targets of debpkg take 6.2 ms of processor time instead of 4.6. Usable
    from several threads: the list of free pieces is only appended to and popped from.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of ``shape`` with whatever was in the memory before."""
        size = int(np.prod(shape))
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.float32)
        if memory.size < size:
            # Some more, so that slightly larger ones fit from now on; what was too small goes.
            memory = np.empty(size + size // 8, np.float32)
        return np.asarray(_Lease(memory, self._free))[:size].reshape(shape)


class _Lease:
    """What the arrays keep alive; the last of them to go (a tensor made from one counts) frees the memory."""

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__: dict[str, Any] = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)


class LocalSource:
    """:class:`GraphDataSource` of a store whose files are mapped on this host. Pickles as the store does, by path."""

    def __init__(self, store: GraphStore) -> None:
        self._store, self.modalities = store, store.modalities
        self._files = {name: store.feature_file(name) for name in store.modalities}
        self._memory = {name: RecycledMemory() for name in store.modalities}

    def __reduce__(self) -> tuple[type, tuple[GraphStore]]:
        return LocalSource, (self._store,)

    @property
    def topology(self) -> CSR:
        return self._store.topology

    def neighbours(self, nodes: np.ndarray, fanout: int, key: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_neighbours(self._store.topology, nodes, nodes, fanout, key)

    def degrees(self, nodes: np.ndarray) -> np.ndarray:
        indptr = self._store.topology.indptr
        return indptr[nodes + 1] - indptr[nodes]

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        """As :class:`GraphDataSource`; IndexError for an id outside 0 … n − 1."""
        if len(nodes) and not (nodes.min() >= 0 and nodes.max() < self._store.num_nodes):
            raise IndexError(f"node ids must lie in 0 … {self._store.num_nodes - 1}")
        record = self._store.modalities[modality]
        flat, starts = self._files[modality]
        out = self._memory[modality].empty((len(nodes), record.width))
        if record.dtype == "float16":
            gather_float16(flat.view(np.uint16), starts, nodes, out)
        else:
            gather_rows(flat, starts, nodes, out)
        return out

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        return self._store.present(modality)[nodes]


class MaskedRows:
    """:class:`GraphDataSource` in which nodes seem to lack modalities, as ``masked``, modality → (n,) bool, says."""

    def __init__(self, rows: GraphDataSource, masked: Mapping[str, np.ndarray]) -> None:
        self._rows, self._masked = rows, masked
        self.modalities, self.topology = rows.modalities, rows.topology
        self.neighbours, self.degrees = rows.neighbours, rows.degrees

    @classmethod
    def around(cls, rows: GraphDataSource, masked: Sequence[Mapping[str, np.ndarray]]) -> GraphDataSource:
        """``rows`` without what any of ``masked`` masks."""
        masks: dict[str, np.ndarray] = {}
        for mapping in masked:
            for name, mask in mapping.items():
                masks[name] = masks[name] | mask if name in masks else mask
        return cls(rows, masks) if masks else rows

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        values = self._rows.features(modality, nodes)
        if modality in self._masked:
            values[self._masked[modality][nodes]] = 0
        return values

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        present = self._rows.present(modality, nodes)
        return present & ~self._masked[modality][nodes] if modality in self._masked else present


class FeaturelessRows:
    """:class:`GraphDataSource` of the structure of ``rows`` alone."""

    def __init__(self, rows: GraphDataSource) -> None:
        self.modalities: Mapping[str, Modality] = {}
        self.topology, self.neighbours, self.degrees = rows.topology, rows.neighbours, rows.degrees
        self.features, self.present = rows.features, rows.present


def draw_neighbours(
    csr: CSR, rows: np.ndarray, nodes: np.ndarray, fanout: int, key: int
) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``fanout`` distinct neighbours per row of ``csr``, every subset equally likely, all where it is −1: (k +
    1,) int64 ``indptr`` and the neighbours, of the dtype of ``csr.indices``.

    Args:
        csr: rows that lie here: a whole graph's, or a shard's with the graph's own ids in ``indices``.
        rows, nodes: (k,) int64, which rows of ``csr``, and their ids in the graph; with ``key`` (64 bits) these alone
            determine the draw.
    """
    starts, stops = csr.indptr[rows], csr.indptr[rows + 1]
    indptr, out = room_for_draws(stops - starts, fanout, csr.indices.dtype)
    draw(starts, stops, csr.indices, nodes, fanout, np.uint64(key), indptr, out)
    return indptr, out


def room_for_draws(degrees: np.ndarray, fanout: int, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """``indptr`` of draws from rows of ``degrees`` (k,), and an empty array for what is drawn."""
    indptr = np.zeros(len(degrees) + 1, np.int64)
    np.cumsum(degrees if fanout < 0 else np.minimum(degrees, fanout), out=indptr[1:])
    return indptr, np.empty(indptr[-1], dtype)
