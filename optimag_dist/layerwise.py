"""Layer-wise inference: what a model says of many nodes, with each layer of each node computed once.

Batch by batch, a node's L-hop neighbourhood is computed anew for each batch it turns up in: with all neighbours and a
hub, nearly the whole graph per batch. Here the nodes that each layer needs are found first, from the last layer down,
and computed from the first layer up; workers share them out and exchange the rows. A few nodes of a huge graph need
their own neighbourhood and no more, a part of a graph at most the whole graph once. A draw of neighbours is a function
of layer and node, so the answer does not depend on what else is asked for, nor on the number of workers.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from optimag_dist.models import MultimodalModel
from optimag_dist.models.pretrained import PretrainedEncoder
from optimag_dist.sampling import BlockSampler, GraphDataSource
from optimag_dist.sampling.loader import prefetched
from optimag_dist.sampling.neighbours import append_nodes, layer_key
from optimag_dist.types import Block

#: Modality → (n,) bool: nodes that do not show it.
Mask = Mapping[str, np.ndarray]
#: (k,) int64 nodes → (k, …) their rows of the layer below.
Below = Callable[[np.ndarray], Tensor]
Prepared = TypeVar("Prepared")

# Rows that are computed at once, and arcs that messages pass along at once (one node's, where it has more).
_ROWS, _ARCS = 8_192, 131_072
# Rows of raw text or images, which are far wider.
_RAW_ROWS = 512
# Nodes whose neighbourhoods are taken together where a backbone has no layers, and the input nodes from which on they
# are halved.
_TOGETHER, _INPUTS = 512, 131_072
# Bytes of a layer's rows that are kept in memory; more of them lie in a mapped file.
_IN_MEMORY = 2 << 30


@dataclass(frozen=True)
class _Inputs:
    """What the encoders read of some nodes, and per mask what of it is shown."""

    features: Mapping[str, Tensor]
    shown: Sequence[Mapping[str, Tensor]]
    degrees: Tensor


class LayerwiseForward:
    """A model on a graph. With several workers all of them make the same calls, and have the same rows afterwards.

    Args:
        model: in evaluation mode, on ``device``.
        fanouts, seed: one per layer, input side first, -1 for all neighbours; and of the draws.
        rank, world_size: this worker's place; with more than one, torch.distributed must be initialised.
        on_chunk: called before each chunk is computed, and before it is exchanged.
    """

    def __init__(
        self,
        model: MultimodalModel,
        rows: GraphDataSource,
        num_nodes: int,
        fanouts: Sequence[int],
        *,
        seed: int = 0,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_chunk: Callable[[], object] = lambda: None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self._model, self._rows, self._num_nodes = model, rows, num_nodes
        self._fanouts, self._seed = fanouts, seed
        self._rank, self._world_size, self._on_chunk = rank, world_size, on_chunk
        raw = any(isinstance(encoder, PretrainedEncoder) for encoder in model.encoders)
        self._at_once = _RAW_ROWS if raw else _ROWS

    def alone(self) -> "LayerwiseForward":
        """The same for this worker by itself."""
        other = copy(self)
        other._rank, other._world_size = 0, 1
        return other

    def states(self, nodes: np.ndarray) -> Tensor:
        """(k, hidden) what a head sees of ``nodes``, (k,) int64 distinct."""
        return self.masked_states(nodes, [{}])[:, 0]

    @torch.no_grad()
    def masked_states(self, nodes: np.ndarray, masks: Sequence[Mask]) -> Tensor:
        """(k, V, hidden) states of ``nodes`` (k,) with what each of V masks leaves to see of the graph."""
        backbone = self._model.backbone
        if not self._model.passes_messages:
            return self._fused(nodes, masks, lambda x, degrees: backbone(x, (), degrees))
        if not hasattr(backbone, "layer"):
            return self._gathered(
                _chunks(nodes, _TOGETHER), lambda chunk: chunk, lambda chunk: self._neighbourhood(chunk, masks)
            )
        needed = self._needed(nodes)
        table = self._fused(needed[0], masks)
        for index, (below, above) in enumerate(pairwise(needed)):
            table = self._layer(index, above, self._lookup(below, table))
        return table

    @torch.no_grad()
    def encode(self, nodes: np.ndarray) -> dict[str, Tensor]:
        """Modality → (k, embedding) of ``nodes`` (k,); of those that lack it (:meth:`present`), any numbers."""

        def compute(inputs: _Inputs) -> Tensor:
            return torch.stack(list(self._encoded(inputs).values()), 1)

        table = self._gathered(_chunks(nodes, self._at_once), lambda chunk: self._read(chunk, []), compute)
        return {m: table[:, place] for place, m in enumerate(self._model.names)}

    def present(self, nodes: np.ndarray, mask: Mask | None = None) -> dict[str, Tensor]:
        """Modality → (k,) bool, whether ``nodes`` (k,) have it and show it."""
        return {m: self._move(shown) for m, shown in self._shown(nodes, mask or {}).items()}

    @torch.no_grad()
    def fuse(self, nodes: np.ndarray, mask: Mask | None = None) -> Tensor:
        """(k, width) what the backbone's first layer reads of ``nodes`` (k,)."""
        return self._fused(nodes, [mask or {}])[:, 0]

    @torch.no_grad()
    def layer(self, index: int, nodes: np.ndarray, below: Below) -> Tensor:
        """(k, width) output of the backbone's layer ``index`` for ``nodes`` (k,), which reads ``below``."""
        return self._layer(index, nodes, lambda sources: below(sources)[:, None])[:, 0]

    def neighbours(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k + 1,) indptr and the neighbours that the last layer draws for ``nodes`` (k,)."""
        last = len(self._fanouts) - 1
        return self._rows.neighbours(nodes, self._fanouts[last], layer_key((self._seed,), last))

    # -- what is computed ------------------------------------------------------------------------------------------

    def _needed(self, nodes: np.ndarray) -> list[np.ndarray]:
        """The nodes whose input each layer reads, and ``nodes``; all but these ascending."""
        needed = [nodes]
        for layer in reversed(range(len(self._fanouts))):
            everyone = len(needed[0]) == self._num_nodes
            needed.insert(0, np.arange(self._num_nodes) if everyone else self._with_sources(layer, needed[0]))
        return needed

    def _with_sources(self, layer: int, nodes: np.ndarray) -> np.ndarray:
        """``nodes`` and those that send them messages in ``layer``, ascending."""
        reached = torch.zeros(self._num_nodes, dtype=torch.uint8)
        reached[torch.from_numpy(nodes)] = 1
        chunks, key = self._by_arcs(nodes, self._fanouts[layer]), layer_key((self._seed,), layer)
        for start in range(0, len(chunks), self._world_size):
            self._on_chunk()
            for chunk in chunks[start : start + self._world_size][self._rank : self._rank + 1]:
                _, drawn = self._rows.neighbours(chunk, self._fanouts[layer], key)
                reached[torch.from_numpy(drawn).long()] = 1
        if self._world_size > 1:
            self._on_chunk()
            reached = self._move(reached)
            dist.all_reduce(reached, dist.ReduceOp.MAX)
        return reached.nonzero()[:, 0].cpu().numpy()

    def _fused(
        self, nodes: np.ndarray, masks: Sequence[Mask], then: Callable[[Tensor, Tensor], Tensor] = lambda x, degrees: x
    ) -> Tensor:
        """(k, V, …) the fused modalities with each mask, and ``then`` of them and the degrees."""

        def compute(inputs: _Inputs) -> Tensor:
            embeddings = self._encoded(inputs)
            degrees = self._move(inputs.degrees)
            return torch.stack([then(self._model.fusion(embeddings, self._moved(s)), degrees) for s in inputs.shown], 1)

        return self._gathered(_chunks(nodes, self._at_once), lambda chunk: self._read(chunk, masks), compute)

    def _layer(self, index: int, nodes: np.ndarray, below: Below) -> Tensor:
        """(k, V, …) from (…, V, …) below."""
        fanout, key = self._fanouts[index], layer_key((self._seed,), index)

        def prepare(chunk: np.ndarray) -> tuple[np.ndarray, Block, Tensor]:
            indptr, drawn = self._rows.neighbours(chunk, fanout, key)
            sources, local = append_nodes(chunk, drawn)
            block = Block(torch.from_numpy(indptr), torch.from_numpy(local), len(sources))
            return sources, block, self._degrees(sources)

        def compute(prepared: tuple[np.ndarray, Block, Tensor]) -> Tensor:
            sources, block, degrees = prepared
            x, block, degrees = self._move(below(sources)), block.map(self._move), self._move(degrees)
            layer = self._model.backbone.layer
            return torch.stack([layer(index, each.contiguous(), block, degrees) for each in x.unbind(1)], 1)

        return self._gathered(self._by_arcs(nodes, fanout), prepare, compute)

    def _neighbourhood(self, nodes: np.ndarray, masks: Sequence[Mask]) -> Tensor:
        """(k, V, hidden) of a backbone that has no layers."""
        sampled, blocks = BlockSampler(self._rows.neighbours).sample(nodes, self._fanouts, (self._seed,))
        if len(sampled) > _INPUTS and len(nodes) > 1:
            return torch.cat([self._neighbourhood(half, masks) for half in np.array_split(nodes, 2)])
        inputs = self._read(sampled, masks)
        embeddings, degrees = self._encoded(inputs), self._move(inputs.degrees)
        moved = [block.map(self._move) for block in blocks]
        fused = (self._model.fusion(embeddings, self._moved(shown)) for shown in inputs.shown)
        return torch.stack([self._model.backbone(x, moved, degrees) for x in fused], 1)

    def _encoded(self, inputs: _Inputs) -> dict[str, Tensor]:
        return self._model.encode(self._moved(inputs.features))

    # -- how it is shared out and kept -----------------------------------------------------------------------------

    def _gathered(
        self,
        chunks: Sequence[np.ndarray],
        prepare: Callable[[np.ndarray], Prepared],
        compute: Callable[[Prepared], Tensor],
    ) -> Tensor:
        """The rows of all chunks, in their order: this worker computes its share, threads prepare it ahead. Chunks do
        not depend on the number of workers, so rounding does not either."""
        size, table, filled = self._world_size, torch.empty(0), 0
        rounds = [chunks[start : start + size] for start in range(0, len(chunks), size)]
        # Whoever has no chunk in the last round computes another's: so all know what a row looks like.
        jobs = [(prepare, each[min(self._rank, len(each) - 1)]) for each in rounds]
        with closing(prefetched(jobs, torch.get_num_threads())) as prepared:
            for each, inputs in zip(rounds, prepared, strict=True):
                self._on_chunk()
                mine = compute(inputs)
                for rows in self._exchanged(mine, [len(chunk) for chunk in each]):
                    if not filled:
                        table = self._room(sum(map(len, chunks)), rows)
                    table[filled : filled + len(rows)] = rows
                    filled += len(rows)
        return table

    def _exchanged(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        if self._world_size == 1:
            return [mine]
        self._on_chunk()
        sent = mine.new_zeros(max(sizes), *mine.shape[1:])
        sent[: len(mine)] = mine
        received = [torch.empty_like(sent) for _ in range(self._world_size)]
        dist.all_gather(received, sent)
        return [rows[:size] for rows, size in zip(received, sizes, strict=False)]

    def _room(self, count: int, like: Tensor) -> Tensor:
        """An empty (count, …) table of rows as ``like`` has them."""
        shape = (count, *like.shape[1:])
        numbers = int(np.prod(shape))
        if numbers * like.element_size() <= _IN_MEMORY:
            return like.new_empty(shape)
        # The mapping keeps the file after its name is gone.
        with tempfile.NamedTemporaryFile(prefix="optimag-") as file:
            return torch.from_file(file.name, shared=True, size=numbers, dtype=like.dtype).view(shape)

    def _lookup(self, nodes: np.ndarray, table: Tensor) -> Below:
        """Rows of ``table``, which has those of ``nodes``, ascending."""
        everyone = len(nodes) == self._num_nodes

        def below(sources: np.ndarray) -> Tensor:
            places = sources if everyone else np.searchsorted(nodes, sources)
            return table[torch.from_numpy(places).to(table.device)]

        return below

    def _by_arcs(self, nodes: np.ndarray, fanout: int) -> list[np.ndarray]:
        """``nodes`` in chunks of bounded numbers of rows and of arcs."""
        sizes = self._rows.degrees(nodes)
        ends = np.cumsum(sizes if fanout < 0 else np.minimum(sizes, fanout))
        chunks, start = [], 0
        while start < len(nodes):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _ARCS, side="right")))
            stop = min(stop, start + _ROWS)
            chunks.append(nodes[start:stop])
            start = stop
        return chunks

    # -- what is read ----------------------------------------------------------------------------------------------

    def _read(self, nodes: np.ndarray, masks: Sequence[Mask]) -> _Inputs:
        features = {m: torch.from_numpy(self._rows.features(m, nodes)) for m in self._model.names}
        return _Inputs(features, [self._shown(nodes, mask) for mask in masks], self._degrees(nodes))

    def _shown(self, nodes: np.ndarray, mask: Mask) -> dict[str, Tensor]:
        present = {m: self._rows.present(m, nodes) for m in self._model.names}
        return {m: torch.from_numpy(p & ~mask[m][nodes] if m in mask else p) for m, p in present.items()}

    def _degrees(self, nodes: np.ndarray) -> Tensor:
        return torch.from_numpy(self._rows.degrees(nodes)).float()

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def _moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._move(tensor) for name, tensor in tensors.items()}


def _chunks(nodes: np.ndarray, size: int) -> list[np.ndarray]:
    return [nodes[start : start + size] for start in range(0, len(nodes), size)]
