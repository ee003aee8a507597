"""Backbones over sampled blocks: each turns the input nodes' vectors into the destinations' hidden states.

A backbone is a module with ``forward(x, blocks, degrees) -> Tensor``: x (U, width) for the batch's nodes, blocks input
side first (destinations are the first rows of the sources), degrees (U,) in the whole graph; the result has one row per
destination of the last block. ``passes_messages`` says whether it wants blocks at all. One that does is the composition
of its ``layer(index, x, block, degrees)``, so that all nodes can be computed layer by layer too.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from optimag_dist.sparse import spmm
from optimag_dist.types import Block


class MLP(nn.Module):
    """The same depth without the graph: what the features alone can do."""

    passes_messages = False

    def __init__(self, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width if i == 0 else hidden, hidden) for i in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x).relu())
        return x


class SAGE(nn.Module):
    """GraphSAGE with the mean aggregator (Hamilton et al., arXiv 1706.02216, algorithm 2)."""

    passes_messages = True

    def __init__(self, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = [width] + [hidden] * (num_layers - 1)
        self.own = nn.ModuleList(nn.Linear(w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(nn.Linear(w, hidden, bias=False) for w in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
        for index, block in zip(range(self.num_layers), blocks, strict=True):
            x = self.layer(index, x[: block.num_src], block, degrees)
        return x

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        """Layer ``index`` alone: (num_src, width) → (num_dst, hidden)."""
        sampled = block.indptr.diff().to(x.dtype)
        mean = spmm(block.indptr, block.indices, None, x) / sampled.clamp(min=1)[:, None]
        return self.dropout((self.own[index](x[: block.num_dst]) + self.neighbours[index](mean)).relu())


class GCN(nn.Module):
    """Graph convolution with symmetric normalisation and self loops (Kipf and Welling, arXiv 1609.02907).

    On sampled neighbours the sum over all neighbours is estimated without bias: each sampled one stands for
    degree / sampled of them, with the degrees of the whole graph.
    """

    passes_messages = True

    def __init__(self, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.layers = nn.ModuleList(nn.Linear(width if i == 0 else hidden, hidden) for i in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
        for index, block in zip(range(self.num_layers), blocks, strict=True):
            x = self.layer(index, x[: block.num_src], block, degrees)
        return x

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        """Layer ``index`` alone: (num_src, width) → (num_dst, hidden); ``degrees`` of the sources, or more."""
        scale = (degrees[: block.num_src].to(x.dtype) + 1).rsqrt()[:, None]
        x = self.layers[index](x) * scale
        sampled = block.indptr.diff().to(x.dtype).clamp(min=1)
        stands_for = (degrees[: block.num_dst].to(x.dtype) / sampled)[:, None]
        total = spmm(block.indptr, block.indices, None, x) * stands_for + x[: block.num_dst]
        return self.dropout((total * scale[: block.num_dst]).relu())


BACKBONES: dict[str, type[MLP] | type[SAGE] | type[GCN]] = {"mlp": MLP, "sage": SAGE, "gcn": GCN}


def make_backbone(name: str, width: int, hidden: int, num_layers: int, dropout: float) -> MLP | SAGE | GCN:
    """The backbone called ``name`` with ``num_layers`` layers of ``hidden`` units on (U, ``width``) inputs."""
    return BACKBONES[name](width, hidden, num_layers, dropout)
