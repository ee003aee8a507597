"""Ranks of true candidates, exact and in bounded memory, and the figures made of them.

Equal scores count as the mean of the best and the worst order they allow: with g other candidates above the true one
and e level with it, its rank is 1 + g + e/2. This is the "realistic" rank of Berrendorf et al. (arXiv 2002.06914), and
the rank of OGB's evaluator (Hu et al., arXiv 2005.00687): a model that scores all alike is told so, and not that it is
perfect. Nothing is sorted, and half ranks occur; hits@k and recall@k count ranks up to k.

Scores that are NaN have no order. They raise, since any place given to them would hide a model that has diverged.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from optimag_dist.tasks.task import diverged
from optimag_dist.types import CSR

# Matrix products end in other kernels at their ragged edges, where equal rows may get other last bits.
_TILE = 64


def rank_among(true: Tensor, others: Tensor) -> Tensor:
    """Rank from 1, (k,) float64, of each true candidate's score (k,) among its own list of others (k, K). Computed in
    one call with ``others``, equal candidates get equal scores to the last bit."""
    _raise_if(true.isnan().any() | others.isnan().any())
    greater, level = (compare(others, true[:, None]).sum(1).double() for compare in (torch.gt, torch.eq))
    return 1 + greater + level / 2


@torch.no_grad()
def rank_all(
    queries: Tensor,
    candidates: Tensor,
    true: Tensor,
    *,
    score: Callable[[Tensor, Tensor], Tensor],
    known: CSR | None = None,
    exclude: Tensor | None = None,
    block: int = 512,
) -> Tensor:
    """Rank from 1 of each query's true candidate among all candidates, (k,) float64 on the queries' device, streamed
    over blocks of both.

    ``score`` always gets blocks of one shape, padded with zeros to multiples of 64, and the true candidates' scores
    come from it too: so candidates that are equal get equal scores, wherever they stand, and count as ties.

    Args:
        queries, candidates: (k, d), whose device does the work, and (n, d), there or elsewhere: each block is moved
            once.
        true: (k,) int64 rows of ``candidates``.
        score: (b, d), (c, d) → (b, c) scores, each a function of its own pair; a new tensor, which is overwritten.
        known: row i lists candidates left out for query i, in any order, since they are true as well (the "filtered"
            setting of Bordes et al., NeurIPS 2013). The true one may be among them.
        exclude: (k,) int64, one more left out for each query, such as the query node itself.
        block: at most this many of either side at once, rounded up to a multiple of 64. Memory beside the input: a few
            block² scores, k counts, and the pairs left out. 512 suits a CPU's cache; a GPU wants more.
    """
    k, n, device = len(queries), len(candidates), queries.device
    if not k:
        return torch.empty(0, dtype=torch.float64, device=device)
    columns = _whole_tiles(min(block, n))
    rows = min(_whole_tiles(min(block, k)), columns)
    spans = [slice(start, min(start + rows, k)) for start in range(0, k, rows)]
    left_out = _left_out(true, known, exclude, -(-n // columns), rows, columns, device)
    greater, level = (torch.zeros(k, dtype=torch.float64, device=device) for _ in range(2))
    nan = torch.zeros((), dtype=torch.bool, device=device)

    def scores(span: slice, some: Tensor) -> Tensor:
        size = span.stop - span.start
        table = score(_padded(queries[span], rows), _padded(some.to(device), columns))[:size, : len(some)]
        nan.logical_or_(table.amax().isnan())
        return table

    places = true.to(candidates.device)
    thresholds = torch.cat([scores(span, candidates[places[span]]).diagonal() for span in spans])[:, None]
    for start in range(0, n, columns):
        some = candidates[start : start + columns].to(device)
        for span in spans:
            table = scores(span, some)
            # Neither greater than anything nor equal to it.
            table[left_out(span.start, start)] = torch.nan
            greater[span] += _count(torch.gt, table, thresholds[span])
            level[span] += _count(torch.eq, table, thresholds[span])
    _raise_if(nan)
    return 1 + greater + level / 2


def ranking_metrics(ranks: Tensor) -> dict[str, float]:
    """``mrr`` (mean of 1 / rank), ``hits@1`` and ``hits@10`` of (k,) ranks, k ≥ 1; their order does not matter."""
    return {"mrr": math.fsum((1 / ranks).tolist()) / len(ranks), **_shares(ranks, "hits", 1, 10)}


def retrieval_metrics(ranks: Tensor) -> dict[str, float]:
    """``recall@1``, ``recall@5``, ``recall@10`` and ``median_rank`` of (k,) ranks of only true candidates, k ≥ 1."""
    return {**_shares(ranks, "recall", 1, 5, 10), "median_rank": float(np.median(ranks.cpu().numpy()))}


def _shares(ranks: Tensor, name: str, *limits: int) -> dict[str, float]:
    return {f"{name}@{limit}": int((ranks <= limit).sum()) / len(ranks) for limit in limits}


def _left_out(
    true: Tensor, known: CSR | None, exclude: Tensor | None, across: int, rows: int, columns: int, device: torch.device
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Places, within the block of ``rows`` and ``columns`` that begins at (row, column), of the pairs that do not
    count; there are ``across`` blocks side by side."""
    each = torch.arange(len(true))
    pairs = [torch.stack([each, others.cpu()]) for others in (true, exclude) if others is not None]
    if known is not None:
        of_row = torch.from_numpy(np.diff(known.indptr))
        others = torch.from_numpy(np.asarray(known.indices, np.int64))
        pairs.append(torch.stack([each.repeat_interleave(of_row), others]))
    row, column = torch.cat(pairs, 1).to(device)
    blocks = row // rows * across + column // columns
    order = blocks.argsort()
    row, column = row[order] % rows, column[order] % columns
    stops = [0, *torch.bincount(blocks, minlength=-(-len(true) // rows) * across).cumsum(0).tolist()]

    def within(first_row: int, first_column: int) -> tuple[Tensor, Tensor]:
        number = first_row // rows * across + first_column // columns
        mine = slice(stops[number], stops[number + 1])
        return row[mine], column[mine]

    return within


def _count(compare: Callable[..., Tensor], table: Tensor, thresholds: Tensor) -> Tensor:
    """(b,) how often each row's scores compare so; exact, as a block has fewer than 2²⁴ columns."""
    # Ones and zeros as numbers: written and summed up several times as fast as bool on a CPU.
    return compare(table, thresholds, out=torch.empty_like(table)).sum(1, dtype=torch.float32)


def _whole_tiles(size: int) -> int:
    return -(-size // _TILE) * _TILE


def _padded(x: Tensor, size: int) -> Tensor:
    """Zeros below the rows of ``x``, ``size`` rows in all."""
    missing = size - len(x)
    return pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x


def _raise_if(nan: Tensor) -> None:
    if nan:
        raise diverged("scores to be ranked are")
