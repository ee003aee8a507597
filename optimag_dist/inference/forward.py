"""The forward pass over many nodes, in memory that does not grow with the graph.

Node by node, a node's L-hop neighbourhood is computed anew for each batch it turns up in: with all neighbours and a
hub, nearly the whole graph per batch. Layer by layer, each layer of each node is computed once, and read by the next
from a file (what DGL's documentation calls offline inference). Both give the same answer, also where neighbours are
drawn: a draw is a function of layer and node. So the whole graph goes layer by layer, a list of nodes node by node.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optimag_dist.models import MultimodalModel
from optimag_dist.models.backbones import MLP
from optimag_dist.models.pretrained import PretrainedEncoder
from optimag_dist.sampling import BlockSampler, GraphRows
from optimag_dist.sampling.neighbours import append_nodes, layer_key
from optimag_dist.types import Block, GroupBatch

# Rows that are encoded at once, and arcs that messages pass along at once (one node's, where it has more).
_ROWS, _ARCS = 16_384, 262_144
# Rows of raw text or pictures, which are far wider.
_RAW_ROWS = 512
# Nodes whose neighbourhoods are taken together, and the input nodes from which on they are halved.
_TOGETHER, _INPUTS = 512, 131_072


class NotFinite(Exception):
    """A model's answer for a node is no number.

    Attributes:
        node: id of the first such node.
        count: how many there are among those computed with it.
        what: of the node.
    """

    def __init__(self, node: int, count: int, what: str) -> None:
        super().__init__(node, count, what)
        self.node, self.count, self.what = node, count, what


class Activations:
    """One layer's output for all nodes, a mapped file per block of ``block_size`` nodes."""

    def __init__(self, files: Sequence[Path], block_size: int) -> None:
        self._blocks = [np.load(file, mmap_mode="r") for file in files]
        self._block_size = block_size

    def gather(self, nodes: np.ndarray) -> np.ndarray:
        """(k,) int64 → (k, width) float32."""
        out = np.empty((len(nodes), self._blocks[0].shape[1]), np.float32)
        order = np.argsort(nodes)
        cuts = np.searchsorted(nodes[order], np.arange(len(self._blocks) + 1) * self._block_size)
        for number in np.flatnonzero(np.diff(cuts)):
            mine = order[cuts[number] : cuts[number + 1]]
            out[mine] = self._blocks[number][nodes[mine] - number * self._block_size]
        return out


class Forward:
    """A model on the rows of a graph.

    Args:
        model: in evaluation mode.
        widths: the modalities it reads.
        rows: the graph.
        fanouts: one per layer, input side first.
        seed: of the draws.
        device: where the model is.
    """

    def __init__(
        self,
        model: MultimodalModel,
        widths: Sequence[str],
        rows: GraphRows,
        fanouts: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._names = list(widths)
        self._rows = rows
        self._fanouts = fanouts
        self._seed = seed
        self._device = device
        raw = any(isinstance(encoder, PretrainedEncoder) for encoder in model.encoders)
        self._at_once = _RAW_ROWS if raw else _ROWS

    def encode(self, nodes: np.ndarray) -> dict[str, Tensor]:
        """Modality → (k, embedding), NaN where absent."""
        pieces = []
        for chunk in _chunks(nodes, self._at_once):
            embeddings, present = self._encoded(chunk)
            pieces.append({m: z.masked_fill(~present[m][:, None], torch.nan) for m, z in embeddings.items()})
        return {m: torch.cat([piece[m] for piece in pieces]) for m in self._names}

    def fuse(self, nodes: np.ndarray) -> Tensor:
        """(k, width) what the backbone's first layer reads of ``nodes``."""
        pieces = []
        for chunk in _chunks(nodes, self._at_once):
            pieces.append(self._model.fusion(*self._encoded(chunk)))
        return torch.cat(pieces)

    def layer(self, index: int, nodes: np.ndarray, below: Activations) -> Tensor:
        """(k, hidden) output of the backbone's layer ``index``, reading ``below`` for the nodes and neighbours."""
        backbone = self._model.backbone
        assert not isinstance(backbone, MLP)
        pieces = []
        key = layer_key((self._seed,), index)
        for chunk in self._by_arcs(nodes, self._fanouts[index]):
            indptr, drawn = self._rows.neighbours(chunk, self._fanouts[index], key)
            sources, local = append_nodes(chunk, drawn)
            block = Block(torch.from_numpy(indptr), torch.from_numpy(local), len(sources)).map(self._move)
            x = self._move(torch.from_numpy(below.gather(sources)))
            hidden = backbone.layer(index, x, block, self._degrees(sources))
            check_finite(hidden, chunk, f"the state in layer {index + 1}")
            pieces.append(hidden)
        return torch.cat(pieces)

    def represent(self, nodes: np.ndarray) -> Tensor:
        """(k, hidden) what the head sees of ``nodes``, from their own neighbourhoods."""
        chunk_size = _TOGETHER if self._model.passes_messages else self._at_once
        return torch.cat([piece for chunk in _chunks(nodes, chunk_size) for piece in self._together(chunk)])

    def _together(self, nodes: np.ndarray) -> Iterator[Tensor]:
        inputs: np.ndarray = nodes
        blocks: tuple[Block, ...] = ()
        if self._model.passes_messages:
            inputs, blocks = BlockSampler(self._rows.neighbours).sample(nodes, self._fanouts, (self._seed,))
            if len(inputs) > _INPUTS and len(nodes) > 1:
                half = len(nodes) // 2
                yield from self._together(nodes[:half])
                yield from self._together(nodes[half:])
                return
        embeddings, present = self._encoded(inputs)
        batch = GroupBatch(
            node_ids=torch.from_numpy(inputs),
            seed_rows=torch.arange(len(nodes)),
            num_anchors=len(nodes),
            blocks=tuple(block.map(self._move) for block in blocks),
            features={},
            present=present,
            degrees=self._degrees(inputs),
            task=0,
            targets={},
            proximity=None,
            kept_ppr=0.0,
        )
        hidden = self._model.represent(embeddings, batch)
        check_finite(hidden, nodes, "the state")
        yield hidden

    def _encoded(self, nodes: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Modality → (k, embedding), and (k,) bool where it is there."""
        embeddings, present = self._model.encode(self._features(nodes)), self._present(nodes)
        for m, z in embeddings.items():
            check_finite(z.masked_fill(~present[m][:, None], 0), nodes, f"the embedding of modality {m!r}")
        return embeddings, present

    def _by_arcs(self, nodes: np.ndarray, fanout: int) -> Iterator[np.ndarray]:
        sizes = self._rows.degrees(nodes)
        ends = np.cumsum(sizes if fanout < 0 else np.minimum(sizes, fanout))
        start = 0
        while start < len(nodes):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _ARCS, side="right")))
            # Nodes without arcs are rows too.
            stop = min(stop, start + _ARCS)
            yield nodes[start:stop]
            start = stop

    def _features(self, nodes: np.ndarray) -> dict[str, Tensor]:
        return {m: self._move(torch.from_numpy(self._rows.features(m, nodes))) for m in self._names}

    def _present(self, nodes: np.ndarray) -> dict[str, Tensor]:
        return {m: self._move(torch.from_numpy(self._rows.present(m, nodes))) for m in self._names}

    def _degrees(self, nodes: np.ndarray) -> Tensor:
        return self._move(torch.from_numpy(self._rows.degrees(nodes)).float())

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def check_finite(values: Tensor, nodes: np.ndarray, what: str) -> None:
    """Raise :class:`NotFinite` for the first of ``nodes`` (k,) whose row of ``values`` (k, …) holds NaN or infinity."""
    bad = (~values.isfinite()).flatten(1).any(1)
    if bad.any():
        raise NotFinite(int(nodes[int(bad.int().argmax())]), int(bad.sum()), what)


def _chunks(nodes: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (nodes[i : i + size] for i in range(0, len(nodes), size))
