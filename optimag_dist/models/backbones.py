"""Backbones over sampled blocks: each turns the input nodes' vectors into the destinations' hidden states.

A backbone is a module with ``forward(x, blocks, degrees) -> Tensor``: x (U, M·d) for the batch's nodes, their
modalities side by side, blocks input side first (destinations are the first rows of the sources), degrees (U,) in the
whole graph; the result has one row per destination of the last block. ``passes_messages`` says whether it wants blocks
at all. One that does is the composition of its ``layer(index, x, block, degrees)``, so that all nodes can be computed
layer by layer too. Under autocast the maps run in half precision, sums over neighbours in single precision.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from optimag_dist.imported import load_kind
from optimag_dist.sparse import spmm
from optimag_dist.types import Block, InputError

_HEADS = 4
# Parameters that a message names.
_NAMED = 5


class Backbone(Protocol):
    """What the model asks of a backbone; one that is brought may lack ``layer``: it goes node by node."""

    passes_messages: bool

    def __call__(self, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor: ...

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor: ...


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
    """A backbone of ``num_layers`` layers of ``hidden`` units, one per block, each followed by dropout. It reads
    embeddings of ``width`` numbers, of M = ``modalities`` modalities."""

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
        return self.dropout((self.own[index](x[: block.num_dst]) + self.heard(index, x, block)).relu())

    def heard(self, index: int, x: Tensor, block: Block) -> Tensor:
        """What the destinations hear from their neighbours: (num_src, …) → (num_dst, …)."""
        return self.neighbours[index](_mean(block, x))


class GCN(MessagePassing):
    """Graph convolution with symmetric normalisation and self loops (Kipf and Welling, arXiv 1609.02907). On sampled
    neighbours the sum over all neighbours is estimated without bias: each sampled one stands for degree / sampled of
    them, with the degrees of the whole graph."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [modalities * width] + [hidden] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(w, hidden) for w in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        x = _wide(self.layers[index](x))
        scale = (degrees[: block.num_src].to(x.dtype) + 1).rsqrt()[:, None]
        x = x * scale
        sampled = block.indptr.diff().to(x.dtype).clamp(min=1)
        stands_for = (degrees[: block.num_dst].to(x.dtype) / sampled)[:, None]
        total = spmm(block.indptr, block.indices, None, x) * stands_for + x[: block.num_dst]
        return self.dropout((total * scale[: block.num_dst]).relu())


class GAT(SAGE):
    """Graph attention (Veličković et al., arXiv 1710.10903, equation 3) with a linear path for the node itself, so that
    nodes without neighbours are seen too. Four heads where ``hidden`` is divisible by four, otherwise one."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        self.heads = _HEADS if hidden % _HEADS == 0 else 1
        self.attention = nn.ModuleList(_Attention(hidden // self.heads, self.heads) for _ in range(num_layers))

    def heard(self, index: int, x: Tensor, block: Block) -> Tensor:
        messages = _wide(self.neighbours[index](x)).unflatten(1, (self.heads, -1))
        return torch.cat(_sums(messages, self.attention[index](messages, block), block), 1)


class MMGCN(MessagePassing):
    """A graph network per modality, joined at the end (Wei et al., MM 2019), without embeddings of node ids, which
    would know nothing of new nodes: h_m ← LeakyReLU(W h_m + mean of U h_m over the neighbours); their mean over m."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        widths = [width] + [hidden] * (num_layers - 1)
        self.own = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)
        self.neighbours = nn.ModuleList(_PerModality(modalities, w, hidden) for w in widths)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        own = self.own[index](x[: block.num_dst].unflatten(1, (self.modalities, -1)))
        h = leaky_relu(own + self.heard(index, x, block))
        return self.dropout(h.mean(1) if index == self.num_layers - 1 else h.flatten(1))

    def heard(self, index: int, x: Tensor, block: Block) -> Tensor:
        """What the destinations hear from their neighbours: (num_src, M·width) → (num_dst, M, hidden)."""
        return self.neighbours[index](_mean(block, x).unflatten(1, (self.modalities, -1)))


class MGAT(MMGCN):
    """Gated attention per modality (Tao et al., Information Processing & Management 2020), without embeddings of node
    ids: as :class:`MMGCN`, but neighbour j counts by its attention times a gate σ(g · (V h_i ∘ V h_j))."""

    def __init__(self, modalities: int, width: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__(modalities, width, hidden, num_layers, dropout)
        self.attention = nn.ModuleList(_Attention(hidden, modalities) for _ in range(num_layers))
        self.gate = nn.ParameterList(torch.zeros(modalities, hidden) for _ in range(num_layers))

    def heard(self, index: int, x: Tensor, block: Block) -> Tensor:
        messages = _wide(self.neighbours[index](x.unflatten(1, (self.modalities, -1))))
        pairs = messages.index_select(0, _rows(block)) * messages.index_select(0, block.indices)
        gates = torch.sigmoid((pairs * self.gate[index]).sum(2))
        return torch.stack(_sums(messages, self.attention[index](messages, block) * gates, block), 1)


class Mixture(GAT):
    """Graph attention over modalities that a mixture of experts has aligned (UniGraph2, He et al., arXiv 2502.00806,
    with the gate of its released code), without its pre-training: :class:`GAT` on the mean over m of Σ_e g_e(z_m)
    E_e(z_m).

    All modalities share the ``num_experts`` experts E_e, perceptrons with one layer of ``hidden`` units; g is the
    softmax over the ``top_k`` largest of W z_m + b, 1 ≤ ``top_k`` ≤ ``num_experts``, and 0 for the others.
    """

    def __init__(
        self,
        modalities: int,
        width: int,
        hidden: int,
        num_layers: int,
        dropout: float,
        *,
        num_experts: int = 4,
        top_k: int = 2,
    ) -> None:
        super().__init__(1, width, hidden, num_layers, dropout)
        if not 1 <= top_k <= num_experts:
            raise InputError(f"top_k: needed 1 to num_experts={num_experts}; got {top_k}")
        self.modalities = modalities
        self.experts = _Experts(width, hidden, num_experts, top_k)

    def layer(self, index: int, x: Tensor, block: Block, degrees: Tensor) -> Tensor:
        if index == 0:
            tokens = x.unflatten(1, (self.modalities, -1))
            x = self.experts(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).mean(1)
        return super().layer(index, x, block, degrees)


class _Experts(nn.Module):
    """Each row's weighted sum of the experts that its gate ranks highest: (k, width) → (k, width)."""

    def __init__(self, width: int, hidden: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(num_experts)
        )
        self.top_k = top_k

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.gate(x).topk(self.top_k)
        weights = scores.softmax(1)
        out = torch.zeros_like(_wide(x))
        # An expert whom nobody chose sees no rows, but is run: DDP waits for a gradient of every parameter.
        for number, expert in enumerate(self.experts):
            rows, rank = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, _wide(expert(x.index_select(0, rows))) * weights[rows, rank, None])
        return out


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
        # index_select: the gradient of x[rows] is summed by several threads in any order, this one's in one.
        scores = leaky_relu(to.index_select(0, rows) + of.index_select(0, block.indices), 0.2)
        index = rows[:, None].expand_as(scores)
        top = scores.new_full(to.shape, -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
        grown = torch.exp(scores - top.index_select(0, rows))
        return grown / torch.zeros_like(to).index_add(0, rows, grown).index_select(0, rows)


def _rows(block: Block) -> Tensor:
    """(arcs,) destination of each arc."""
    rows = torch.arange(block.num_dst, device=block.indptr.device)
    return rows.repeat_interleave(block.indptr.diff(), output_size=len(block.indices))


def _sums(messages: Tensor, weights: Tensor, block: Block) -> list[Tensor]:
    """Per head the sums (num_dst, width) of (num_src, heads, width) that (arcs, heads) weigh."""
    heads = zip(weights.unbind(1), messages.unbind(1), strict=True)
    return [spmm(block.indptr, block.indices, w.contiguous(), x) for w, x in heads]


def _wide(x: Tensor) -> Tensor:
    """What autocast left in half precision as float32, the rest as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(block: Block, x: Tensor) -> Tensor:
    """Mean over the sampled neighbours; 0 where there are none."""
    x = _wide(x)
    sampled = block.indptr.diff().to(x.dtype)
    return spmm(block.indptr, block.indices, None, x) / sampled.clamp(min=1)[:, None]


# Name → where the class stands.
BACKBONES = {cls.__name__.lower(): f"{__name__}:{cls.__name__}" for cls in (MLP, SAGE, GCN, GAT, MMGCN, MGAT, Mixture)}


def make_backbone(
    name: str, modalities: int, width: int, hidden: int, num_layers: int, dropout: float, **settings: Any
) -> Backbone:
    """The backbone called ``name``, one of ``BACKBONES`` or where a class stands, with ``num_layers`` layers of
    ``hidden`` units on (U, ``modalities · width``); ``settings`` are what its constructor takes besides. Raises
    ``InputError`` where there is none. Whether the class can serve as one is asked by :func:`check_backbone`."""
    backbone: Any = _find(name)(modalities, width, hidden, num_layers, dropout, **settings)
    if not hasattr(backbone, "passes_messages"):
        backbone.passes_messages = True
    return cast(Backbone, backbone)


def check_backbone(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    modalities: int = 2,
    width: int = 8,
    hidden: int = 8,
    num_layers: int = 2,
    smallest_group: int = 2,
) -> None:
    """Make the backbone and have it train and evaluate on a toy batch of two nodes, one of them isolated.

    torch's random numbers go on as if it had not been called. With a ``smallest_group`` of one target, a step of one
    node is tried too. ``InputError``: there is no such backbone, it does not take these arguments, or it breaks a line
    of the contract in docs/backbones.md: the message says which, and how to keep it.
    """
    sizes, settings = (modalities, width, hidden, num_layers, 0.5), dict(settings or {})
    signature = inspect.signature(_find(name))
    try:
        signature.bind(*sizes, **settings)
    except TypeError as error:
        raise InputError(
            f"model.backbone {name!r}, model.backbone_settings {settings}: {error}; its constructor is {signature}, "
            "needed (modalities, width, hidden, num_layers, dropout) and the settings by name"
        ) from error
    for key, value in settings.items():
        known = signature.parameters.get(key)
        boolean = known is not None and (isinstance(known.default, bool) or known.annotation in (bool, "bool"))
        # Every text is true to Python, off and no too.
        if boolean and isinstance(value, str):
            raise InputError(f"model.backbone_settings.{key}: needed true or false, got {value!r}")
    what = f"model.backbone {name!r}"
    with torch.random.fork_rng(devices=[]):
        with _blamed(what):
            backbone = make_backbone(name, *sizes, **settings)
        blocks, degrees = _toy(num_layers)
        x = torch.randn(len(degrees), modalities * width)
        _check_step(what, backbone, x, blocks, degrees, hidden)
        if smallest_group == 1:
            _check_step(f"{what}, a training step of one node", backbone, *_alone(x, degrees, num_layers), hidden)
        cast(nn.Module, backbone).eval()
        with torch.no_grad():
            _check_evaluation(what, backbone, x, blocks, degrees, hidden)


def _run(backbone: Backbone, x: Tensor, blocks: Sequence[Block], degrees: Tensor) -> Tensor:
    if backbone.passes_messages:
        return backbone(x, blocks, degrees)
    return backbone(x[: blocks[-1].num_dst], (), degrees)


def _check_step(
    what: str, backbone: Backbone, x: Tensor, blocks: Sequence[Block], degrees: Tensor, hidden: int
) -> None:
    """Forward and backward as in training: what DDP and the optimiser need."""
    module = cast(nn.Module, backbone).train()
    parameters = dict(module.named_parameters())
    x = x.clone().requires_grad_()
    with _blamed(what):
        if lazy := [name for name, p in parameters.items() if isinstance(p, nn.UninitializedParameter)]:
            raise InputError(
                f"{_listed(lazy)} have no shape before the first batch, and the optimiser needs one: use nn.Linear and "
                "the like, not the lazy modules; a modality's embedding is width wide, x modalities * width"
            )
        h = _run(backbone, x, blocks, degrees)
        _check_output("forward", h, blocks[-1].num_dst, hidden)
        if late := [name for name, _ in module.named_parameters() if name not in parameters]:
            raise InputError(
                f"{_listed(late)} were made in forward, after the optimiser had asked for them: make them in __init__"
            )
        if not h.requires_grad:
            raise InputError(
                "forward: its result is detached from parameters and input (no_grad, detach, item or numpy on the "
                "way), so nothing can be trained; compute it with torch's operations alone"
            )
        (h * torch.randn_like(h)).sum().backward()
        if x.grad is None:
            raise InputError("forward: no gradient reaches x, so the encoders cannot be trained; do not detach it")
        if idle := [name for name, p in parameters.items() if p.requires_grad and p.grad is None]:
            raise InputError(
                f"{_listed(idle)} got no gradient: not used in forward, or detached on the way. Workers would wait "
                "for it in vain; use them in every forward pass, leave them out, or call requires_grad_(False) on them"
            )


def _check_evaluation(
    what: str, backbone: Backbone, x: Tensor, blocks: Sequence[Block], degrees: Tensor, hidden: int
) -> None:
    """That a row is the same however often it is computed, and in whatever company."""
    with _blamed(f"{what}, in evaluation mode"):
        h = _run(backbone, x, blocks, degrees)
        _check_output("forward", h, 2, hidden)
        _check_same(
            _run(backbone, x, blocks, degrees),
            h,
            "the same batch gives something else the second time; dropout must be an nn.Dropout or be given "
            "training=self.training, and forward must keep nothing and draw nothing",
        )
    for row, part in ((0, _path(x, degrees, len(blocks))), (1, _alone(x, degrees, len(blocks)))):
        with _blamed(f"{what}, in evaluation mode, one node alone"):
            _check_same(
                _run(backbone, *part),
                h[row : row + 1],
                "a node alone gives something else than beside another one; a row may depend on the node and its arcs, "
                "not on the rest of the batch (its mean, its norm, its size)",
            )
    if not hasattr(backbone, "layer"):
        return
    with _blamed(what):
        for index, block in enumerate(blocks):
            x = backbone.layer(index, x[: block.num_src], block, degrees[: block.num_src])
        _check_output("layer", x, 2, hidden)
        _check_same(
            x,
            h,
            "layer, one block after the other, must give what forward gives. Without a layer, a graph is gone through "
            "node by node",
        )


def _check_same(found: Tensor, needed: Tensor, problem: str) -> None:
    if found.shape != needed.shape:
        raise InputError(f"{problem} (a result of {tuple(found.shape)} where {tuple(needed.shape)} was needed)")
    if not torch.allclose(found, needed, rtol=1e-4, atol=1e-5):
        raise InputError(f"{problem} (they differ by {float((found - needed).abs().max()):.2g})")


def _listed(names: Sequence[str]) -> str:
    return f"parameters {', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' * (len(names) > _NAMED)}"


def _find(name: str) -> type[nn.Module]:
    return load_kind(name, BACKBONES, nn.Module, "model.backbone")


def _toy(num_layers: int) -> tuple[list[Block], Tensor]:
    """Blocks of L + 2 → … → 3 → 2 nodes, of which node 1 has no neighbours, and the degrees of these and one more."""
    blocks = []
    for num_dst in range(num_layers + 1, 1, -1):
        arcs = (torch.arange(num_dst) != 1).long()
        neighbours = torch.arange(1, num_dst + 1).clamp(min=2)[arcs.bool()]
        blocks.append(Block(torch.cat((arcs.new_zeros(1), arcs.cumsum(0))), neighbours, num_dst + 1))
    degrees = torch.full((num_layers + 3,), 2.0)
    degrees[1] = 0
    return blocks, degrees


def _path(x: Tensor, degrees: Tensor, num_layers: int) -> tuple[Tensor, list[Block], Tensor]:
    """Node 0 of :func:`_toy` without node 1: each node's one neighbour is the next."""
    rows = torch.cat((torch.zeros(1, dtype=torch.int64), torch.arange(2, len(x))))
    blocks = [Block(torch.arange(n + 1), torch.arange(1, n + 1), n + 1) for n in range(num_layers, 0, -1)]
    return x[rows], blocks, degrees[rows]


def _alone(x: Tensor, degrees: Tensor, num_layers: int) -> tuple[Tensor, list[Block], Tensor]:
    """Node 1 of :func:`_toy`, which has no neighbours."""
    block = Block(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 1)
    return x[1:2], [block] * num_layers, degrees[1:2]


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Whatever a user's class raises, as an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:
        raise InputError(f"{what} failed on a toy batch of two nodes: {type(error).__name__}: {error}") from error


def _check_output(what: str, h: Any, rows: int, hidden: int) -> None:
    if not isinstance(h, Tensor) or h.shape != (rows, hidden):
        got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise InputError(
            f"{what}: needed a row of hidden={hidden} units per destination of the last block, {(rows, hidden)}; got "
            f"{got}"
        )
    if h.dtype != torch.float32:
        raise InputError(
            f"{what}: needed float32, as x is; got {str(h.dtype).removeprefix('torch.')}: what it is joined with (a "
            "parameter, a constant, a numpy array) must be float32 too"
        )
    if not h.isfinite().all():
        raise InputError(f"{what}: NaN or infinity on a toy batch of two nodes, one of which has no neighbours")
