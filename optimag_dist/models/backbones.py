"""Backbones over sampled blocks: each turns the input nodes' vectors into the destinations' hidden states.

A backbone is a module with ``forward(x, blocks, degrees) -> Tensor``: x (U, M·d) for the batch's nodes, their
modalities side by side, blocks input side first (destinations are the first rows of the sources), degrees (U,) in the
whole graph; the result has one row per destination of the last block. ``passes_messages`` says whether it wants blocks
at all. One that does is the composition of its ``layer(index, x, block, degrees)``, so that all nodes can be computed
layer by layer too.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from optimag_dist.sparse import spmm
from optimag_dist.types import Block

_HEADS = 4


class MLP(nn.Module):
    """The same depth without the graph: what the features alone can do."""

    passes_messages = False

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        widths = [modalities * width] + [hidden] * num_layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x).relu())
        return x


class MessagePassing(nn.Module, ABC):
    """A backbone made of layers over blocks.

    Args:
        modalities: M.
        width: of each modality's embedding.
        hidden: units of a layer.
        num_layers: as many as there are blocks.
        dropout: probability, after every layer.
    """

    passes_messages = True

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.modalities, self.hidden, self.num_layers = modalities, hidden, num_layers
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
        for index, block in zip(range(self.num_layers), blocks, strict=True):
            x = self.layer(index, x[: block.num_src], block, degrees)
        return x

    @abstractmethod
    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        """Layer ``index`` alone: (num_src, …) → (num_dst, …); ``degrees`` of the sources, or more."""


class SAGE(MessagePassing):
    """GraphSAGE with the mean aggregator (Hamilton et al., arXiv 1706.02216, algorithm 2)."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [modalities * width] + [hidden] * (num_layers - 1)
        self.own = nn.ModuleList(nn.Linear(w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(nn.Linear(w, hidden, bias=False) for w in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        return self.dropout((self.own[index](x[: block.num_dst]) + self.neighbours[index](_mean(block, x))).relu())


class GCN(MessagePassing):
    """Graph convolution with symmetric normalisation and self loops (Kipf and Welling, arXiv 1609.02907).

    On sampled neighbours the sum over all neighbours is estimated without bias: each sampled one stands for
    degree / sampled of them, with the degrees of the whole graph.
    """

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [modalities * width] + [hidden] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(w, hidden) for w in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        scale = (degrees[: block.num_src].to(x.dtype) + 1).rsqrt()[:, None]
        x = self.layers[index](x) * scale
        sampled = block.indptr.diff().to(x.dtype).clamp(min=1)
        stands_for = (degrees[: block.num_dst].to(x.dtype) / sampled)[:, None]
        total = spmm(block.indptr, block.indices, None, x) * stands_for + x[: block.num_dst]
        return self.dropout((total * scale[: block.num_dst]).relu())


class GAT(MessagePassing):
    """Graph attention (Veličković et al., arXiv 1710.10903, equation 3) with a linear path for the node itself, so that
    nodes without neighbours are seen too. Four heads where ``hidden`` is divisible by four, otherwise one."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [modalities * width] + [hidden] * (num_layers - 1)
        self.heads = _HEADS if hidden % _HEADS == 0 else 1
        self.own = nn.ModuleList(nn.Linear(w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(nn.Linear(w, hidden, bias=False) for w in widths)
        self.attention = nn.ModuleList(_Attention(hidden // self.heads, self.heads) for _ in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        messages = self.neighbours[index](x).view(len(x), self.heads, -1)
        weights = self.attention[index](messages, block)
        heads = [
            spmm(block.indptr, block.indices, weights[:, h].contiguous(), messages[:, h]) for h in range(self.heads)
        ]
        return self.dropout((self.own[index](x[: block.num_dst]) + torch.cat(heads, 1)).relu())


class MMGCN(MessagePassing):
    """A graph network per modality, joined at the end (Wei et al., MM 2019), without embeddings of node ids, which
    would know nothing of new nodes: h_m ← LeakyReLU(W h_m + mean of U h_m over the neighbours); their mean over m."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [width] + [hidden] * (num_layers - 1)
        self.own = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        x = x.view(len(x), self.modalities, -1)
        mean = _mean(block, x.flatten(1)).view(block.num_dst, self.modalities, -1)
        h = leaky_relu(self.own[index](x[: block.num_dst]) + self.neighbours[index](mean))
        return self.dropout(h.mean(1) if index == self.num_layers - 1 else h.flatten(1))


class MGAT(MessagePassing):
    """Gated attention per modality (Tao et al., Information Processing & Management 2020), without embeddings of node
    ids: as :class:`MMGCN`, but neighbour j counts by its attention times a gate σ(g · (V h_i ∘ V h_j))."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [width] + [hidden] * (num_layers - 1)
        self.own = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)
        self.attention = nn.ModuleList(_Attention(hidden, modalities) for _ in widths)
        self.gate = nn.ParameterList(torch.zeros(modalities, hidden) for _ in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        x = x.view(len(x), self.modalities, -1)
        messages = self.neighbours[index](x)
        gates = torch.sigmoid((messages[_rows(block)] * messages[block.indices] * self.gate[index]).sum(2))
        weights = self.attention[index](messages, block) * gates
        columns = [weights[:, m].contiguous() for m in range(self.modalities)]
        parts = [spmm(block.indptr, block.indices, w, messages[:, m]) for m, w in enumerate(columns)]
        h = leaky_relu(self.own[index](x[: block.num_dst]) + torch.stack(parts, 1))
        return self.dropout(h.mean(1) if index == self.num_layers - 1 else h.flatten(1))


class _PerModality(nn.Module):
    """A linear map of its own for each modality: (k, M, width) → (k, M, hidden)."""

    def __init__(self, modalities: int, width: int, hidden: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, hidden) for _ in range(modalities))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([linear(x[:, m]) for m, linear in enumerate(self.maps)], 1)


class _Attention(nn.Module):
    """softmax over a row's arcs of LeakyReLU(a · h_i + b · h_j): (num_src, heads, width) → (arcs, heads)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.target = nn.Parameter(torch.empty(heads, width))
        self.source = nn.Parameter(torch.empty(heads, width))
        nn.init.xavier_uniform_(self.target)
        nn.init.xavier_uniform_(self.source)

    def forward(self, messages: Tensor, block: Block) -> Tensor:
        to, of = (messages[: block.num_dst] * self.target).sum(2), (messages * self.source).sum(2)
        rows = _rows(block)
        scores = leaky_relu(to[rows] + of[block.indices], 0.2)
        index = rows[:, None].expand_as(scores)
        top = scores.new_full(to.shape, -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
        grown = torch.exp(scores - top[rows])
        return grown / torch.zeros_like(to).index_add(0, rows, grown)[rows]


def _rows(block: Block) -> Tensor:
    """(arcs,) destination of each arc."""
    rows = torch.arange(block.num_dst, device=block.indptr.device)
    return rows.repeat_interleave(block.indptr.diff(), output_size=len(block.indices))


def _mean(block: Block, x: Tensor) -> Tensor:
    """Mean over the sampled neighbours; 0 where there are none."""
    sampled = block.indptr.diff().to(x.dtype)
    return spmm(block.indptr, block.indices, None, x) / sampled.clamp(min=1)[:, None]


BACKBONES: dict[str, type[MLP] | type[MessagePassing]] = {
    "mlp": MLP,
    "sage": SAGE,
    "gcn": GCN,
    "gat": GAT,
    "mmgcn": MMGCN,
    "mgat": MGAT,
}


def make_backbone(
    name: str, modalities: int, width: int, hidden: int, num_layers: int, dropout: float
) -> MLP | MessagePassing:
    """The backbone called ``name`` with ``num_layers`` layers of ``hidden`` units on (U, ``modalities · width``)."""
    return BACKBONES[name](modalities, width, hidden, num_layers, dropout)
