"""Rows of a graph that lies in shards: each shard has an owner, and a batch asks every owner once per need.

Owners draw neighbours themselves and send features as they are stored, so that what travels is what the batch uses. How
a question reaches an owner is the caller's affair (:data:`RpcCall`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from optimag_dist.sampling.kernels import gather_rows
from optimag_dist.sampling.rows import draw_neighbours, room_for_draws
from optimag_dist.store.csr import copy_rows
from optimag_dist.store.layout import Modality
from optimag_dist.store.shards import Partition
from optimag_dist.types import InputError

#: (owner, method of :class:`ShardServer`, its arguments) → a function that waits for the answer.
RpcCall = Callable[..., Callable[[], Any]]


class ShardServer:
    """Answers for the nodes of the shards it is asked about; maps these files and no others."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition

    def neighbours(self, nodes: np.ndarray, fanout: int, key: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`optimag_dist.sampling.rows.GraphDataSource.neighbours`."""
        indptr, out = room_for_draws(self._partition.degrees[nodes], fanout, np.int32)
        for part, places, rows in self._by_part(nodes):
            csr = self._partition.shard(part).rows
            drawn = draw_neighbours(csr, rows, nodes[places], fanout, key)
            copy_rows(*drawn, np.arange(len(places)), indptr, places, out)
        return indptr, out

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        """(k, width) of the stored dtype, zeros where absent."""
        record = self._partition.modalities[modality]
        values = np.empty((len(nodes), record.width), record.dtype)
        for part, places, rows in self._by_part(nodes):
            flat, starts = self._partition.feature_file(part, modality)
            mine = np.empty((len(rows), record.width), record.dtype)
            # As integers: compiled code does not know float16, and nothing is computed.
            bits = np.dtype(f"u{flat.itemsize}")
            gather_rows(flat.view(bits), starts, rows, mine.view(bits))
            values[places] = mine
        return values

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        """(k,) bool."""
        out = np.empty(len(nodes), bool)
        for part, places, rows in self._by_part(nodes):
            out[places] = self._partition.present(part, modality)[rows]
        return out

    def _by_part(self, nodes: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        part, row = self._partition.part[nodes], self._partition.row[nodes].astype(np.int64)
        for index in np.unique(part):
            places = np.flatnonzero(part == index)
            yield int(index), places, row[places]


class ShardedSource:
    """A :class:`~optimag_dist.sampling.rows.GraphDataSource` of a partition whose shards carry features; owner p mod
    ``num_owners`` has part p.

    Holds who owns which node and the degrees, 10 bytes per node, mapped and shared by the host's workers.
    """

    topology = None

    def __init__(self, partition: Partition, num_owners: int, ask: RpcCall) -> None:
        if not partition.modalities:
            raise InputError(f"{partition.path}: shards without features; run `optimag partition` with features=true")
        self._partition, self._num_owners, self._ask = partition, num_owners, ask
        self.modalities: Mapping[str, Modality] = partition.modalities

    def neighbours(self, nodes: np.ndarray, fanout: int, key: int) -> tuple[np.ndarray, np.ndarray]:
        indptr, out = room_for_draws(self._partition.degrees[nodes], fanout, np.int32)
        for places, drawn in self._answers(nodes, "neighbours", lambda mine: (mine, fanout, key)):
            copy_rows(*drawn, np.arange(len(places)), indptr, places, out)
        return indptr, out

    def degrees(self, nodes: np.ndarray) -> np.ndarray:
        return self._partition.degrees[nodes].astype(np.int64)

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        out = np.empty((len(nodes), self.modalities[modality].width), np.float32)
        for places, values in self._answers(nodes, "features", lambda mine: (modality, mine)):
            out[places] = values
        return out

    def present(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        out = np.empty(len(nodes), bool)
        for places, is_there in self._answers(nodes, "present", lambda mine: (modality, mine)):
            out[places] = is_there
        return out

    def _answers(
        self, nodes: np.ndarray, question: str, arguments: Callable[[np.ndarray], tuple[Any, ...]]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        owner = self._partition.part[nodes] % self._num_owners
        # All are asked before the first answer is waited for.
        asked = []
        for index in np.unique(owner):
            places = np.flatnonzero(owner == index)
            asked.append((places, self._ask(int(index), question, *arguments(nodes[places]))))
        for places, wait in asked:
            yield places, wait()
