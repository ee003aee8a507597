"""Ranks against scipy's average ranks of whole float64 score matrices, and figures against torchmetrics, scikit-learn
and the formula of OGB's evaluator.

Embeddings of small integers have exact scores in any order of summation, and many ties. ``rankdata`` of the negated
scores with ``method="average"`` is the mean of the best and the worst rank.
"""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalRecall

from optimag_dist.tasks.link_prediction import DotDecoder, MLPDecoder
from optimag_dist.tasks.ranking import rank_all, rank_among, ranking_metrics, retrieval_metrics
from optimag_dist.tasks.task import gather
from optimag_dist.types import CSR, Diverged

INF = float("inf")


def dot(queries: Tensor, candidates: Tensor) -> Tensor:
    return queries @ candidates.T


def integers(rng: np.random.Generator, rows: int, width: int = 3) -> Tensor:
    return torch.from_numpy(rng.integers(-2, 3, (rows, width))).float()


def csr_of(lists: list[list[int]]) -> CSR:
    indptr = np.concatenate([[0], np.cumsum([len(each) for each in lists])])
    return CSR(indptr, np.array([column for each in lists for column in each], np.int32))


def dense_ranks(scores: np.ndarray, true: np.ndarray, left_out: list[set[int]]) -> list[float]:
    """The rank of each row's true candidate among those not left out, by sorting."""
    ranks = []
    for row, place, without in zip(scores, true, left_out, strict=True):
        kept = [place] + [j for j in range(len(row)) if j != place and j not in without]
        ranks.append(float(rankdata(-row[kept], method="average")[0]))
    return ranks


def ogb_mrr(true: np.ndarray, others: np.ndarray) -> float:
    """``Evaluator._eval_mrr`` of ogb.linkproppred in numpy."""
    optimistic = (others > true[:, None]).sum(1)
    pessimistic = (others >= true[:, None]).sum(1)
    return float((1 / (0.5 * (optimistic + pessimistic) + 1)).mean())


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("true", "others", "rank"),
    [
        (3.0, [1, 2, 0], 1),
        (1.5, [1, 2, 0], 2),
        (0.0, [1, 2, 3], 4),
        (2.0, [1, 2, 0], 1.5),
        (2.0, [2, 2, 3], 3),
        (1.0, [1, 1, 1, 1], 3),
        (INF, [INF, 0, -INF], 1.5),
        (-INF, [-INF, -INF, 0], 3),
        (0.0, [], 1),
    ],
)
def test_ranks_and_mrr_of_hand_made_lists(true: float, others: list[float], rank: float) -> None:
    ranks = rank_among(torch.tensor([true]), torch.tensor([others]))
    assert (ranks.tolist(), ranks.dtype) == ([rank], torch.float64)
    assert ranking_metrics(ranks)["mrr"] == ogb_mrr(np.array([true]), np.array([others]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(0, 30))
def test_rank_among_is_the_average_rank(seed: int, k: int, others: int) -> None:
    scores = np.random.default_rng(seed).integers(-4, 5, (k, 1 + others)) / 8
    ranks = rank_among(torch.from_numpy(scores[:, 0]), torch.from_numpy(scores[:, 1:]))
    assert ranks.tolist() == dense_ranks(scores, np.zeros(k, int), [set()] * k)
    assert ranking_metrics(ranks)["mrr"] == pytest.approx(ogb_mrr(scores[:, 0], scores[:, 1:]), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 150),
    n=st.integers(1, 300),
    blocks=st.sets(st.sampled_from([1, 63, 64, 65, 128, 192, 1000]), min_size=2, max_size=3),
    known=st.booleans(),
    exclude=st.booleans(),
)
def test_rank_all_is_the_average_rank_of_the_dense_matrix_for_any_block(
    seed: int, k: int, n: int, blocks: set[int], known: bool, exclude: bool
) -> None:
    rng = np.random.default_rng(seed)
    queries, candidates, true = integers(rng, k), integers(rng, n), rng.integers(0, n, k)
    # Unsorted, with repetitions, the true one and the excluded one among them.
    lists = [rng.integers(0, n, rng.integers(0, 5)).tolist() for _ in range(k)]
    for i in range(0, k, 3):
        lists[i].append(int(true[i]))
    own = rng.integers(0, n, k)
    left_out = [
        (set(each) if known else set()) | ({int(j)} if exclude else set()) for each, j in zip(lists, own, strict=True)
    ]
    expected = dense_ranks(queries.double().numpy() @ candidates.double().numpy().T, true, left_out)
    for block in blocks:
        ranks = rank_all(
            queries,
            candidates,
            torch.from_numpy(true),
            score=dot,
            known=csr_of(lists) if known else None,
            exclude=torch.from_numpy(own) if exclude else None,
            block=block,
        )
        assert (ranks.tolist(), ranks.dtype) == (expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_counts_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    # More level candidates than bfloat16 can count, all in one block.
    candidates = torch.ones(1500, 1, dtype=dtype)
    candidates[:7] = 2
    ranks = rank_all(candidates[7:9], candidates, torch.tensor([1000, 3]), score=dot, block=2048)
    assert ranks.tolist() == [1 + 7 + 1492 / 2, 1 + 6 / 2]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 150),
    n=st.integers(1, 300),
    width=st.integers(1, 80),
    block=st.sampled_from([1, 64, 100, 256]),
    mlp=st.booleans(),
)
def test_a_model_that_tells_no_node_from_another_gets_the_middle_rank(
    seed: int, k: int, n: int, width: int, block: int, mlp: bool
) -> None:
    # Equal vectors of real numbers: their scores are rounded, and must be rounded alike wherever they stand.
    torch.manual_seed(seed)
    one = torch.randn(1, width)
    decoder = MLPDecoder(width) if mlp else DotDecoder()
    true = torch.randint(n, (k,))
    ranks = rank_all(one.expand(k, -1), one.expand(n, -1), true, score=decoder.score_all, block=block)
    assert set(ranks.tolist()) == {(n + 1) / 2}


def test_scores_are_asked_for_in_blocks_of_one_shape() -> None:
    shapes = []

    def score(queries: Tensor, candidates: Tensor) -> Tensor:
        shapes.append((len(queries), len(candidates)))
        return queries @ candidates.T

    torch.manual_seed(0)
    queries, candidates = torch.randn(300, 4), torch.randn(1000, 4)
    rank_all(queries, candidates, torch.arange(300), score=score, block=128)
    # Once for the true ones, and 8 blocks of candidates.
    assert shapes == [(128, 128)] * (3 * (1 + 8))


@pytest.mark.parametrize("place", [0, 70, 299])
@pytest.mark.parametrize("of_query", [False, True])
def test_nan_raises_wherever_it_stands(place: int, of_query: bool) -> None:
    queries, candidates = torch.ones(100, 2), torch.ones(300, 2)
    if of_query:
        queries[place // 3, 0] = torch.nan
    else:
        candidates[place, 0] = torch.nan
    with pytest.raises(Diverged, match="not finite"):
        rank_all(queries, candidates, torch.full((100,), 7), score=dot, block=64)
    scores = dot(queries, candidates)
    with pytest.raises(Diverged, match="not finite"):
        rank_among(scores[:, 7], scores)


def test_infinite_scores_and_blocks_of_padding_count_as_they_are() -> None:
    # The padding scores 0, which is more than any candidate has.
    candidates = torch.tensor([[-INF], [-3.0], [-2.0], [-INF], [-1.0]])
    ranks = rank_all(torch.ones(5, 1), candidates, torch.arange(5), score=dot)
    assert ranks.tolist() == [4.5, 3, 2, 4.5, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("block", [64, 512, 4096])
def test_a_gpu_ranks_as_the_cpu_does(block: int) -> None:
    rng = np.random.default_rng(0)
    queries, candidates, true = integers(rng, 700), integers(rng, 5000), torch.from_numpy(rng.integers(0, 5000, 700))
    known = csr_of(rng.integers(0, 5000, (700, 3)).tolist())
    here = rank_all(queries, candidates, true, score=dot, known=known, exclude=true.flip(0))
    there = rank_all(
        queries.cuda(), candidates, true.cuda(), score=dot, known=known, exclude=true.flip(0).cuda(), block=block
    )
    assert there.is_cuda
    assert there.tolist() == here.tolist()
    one = torch.randn(1, 48, device="cuda")
    for decoder in (DotDecoder(), MLPDecoder(48).cuda()):
        alike = rank_all(one.expand(700, -1), one.expand(5000, -1), true, score=decoder.score_all, block=block)
        assert set(alike.tolist()) == {2500.5}


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_torchmetrics_and_sklearn_where_nothing_ties() -> None:
    torch.manual_seed(0)
    queries, candidates, true = torch.randn(80, 5), torch.randn(60, 5), torch.randint(60, (80,))
    scores = dot(queries, candidates)
    ranks = rank_all(queries, candidates, true, score=dot, block=64)
    hit = torch.zeros(80, 60, dtype=torch.bool)
    hit[torch.arange(80), true] = True
    which = torch.arange(80).repeat_interleave(60)
    ranking, retrieval = ranking_metrics(ranks), retrieval_metrics(ranks)

    def reference(metric: RetrievalMRR | RetrievalHitRate | RetrievalRecall) -> float:
        # It counts nothing that scores 0 or less.
        return float(metric(scores.double().sigmoid().flatten(), hit.flatten(), indexes=which))

    assert ranking.keys() == {"mrr", "hits@1", "hits@10"}
    assert ranking["mrr"] == pytest.approx(reference(RetrievalMRR()), rel=1e-6)
    assert ranking["mrr"] == pytest.approx(label_ranking_average_precision_score(hit.numpy(), scores.numpy()))
    for k in (1, 10):
        assert ranking[f"hits@{k}"] == pytest.approx(reference(RetrievalHitRate(top_k=k)), rel=1e-6)
    assert retrieval.keys() == {"recall@1", "recall@5", "recall@10", "median_rank"}
    for k in (1, 5, 10):
        assert retrieval[f"recall@{k}"] == pytest.approx(reference(RetrievalRecall(top_k=k)), rel=1e-6)
        assert retrieval[f"recall@{k}"] == top_k_accuracy_score(true, scores, k=k, labels=np.arange(60))
    assert retrieval["median_rank"] == np.median(rankdata(-scores.numpy(), axis=1)[np.arange(80), true])


def test_a_tie_for_the_last_place_that_counts_is_no_hit() -> None:
    ranks = torch.tensor([1.0, 1.5, 5.0, 5.5, 10.0, 10.5], dtype=torch.float64)
    assert [ranking_metrics(ranks)[f"hits@{k}"] for k in (1, 10)] == [1 / 6, 5 / 6]
    assert [retrieval_metrics(ranks)[f"recall@{k}"] for k in (1, 5, 10)] == [1 / 6, 3 / 6, 5 / 6]
    assert retrieval_metrics(ranks)["median_rank"] == 5.25


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 400), min_size=1, max_size=200), st.randoms())
def test_figures_do_not_depend_on_the_order_to_the_last_bit(halves: list[int], random: Random) -> None:
    ranks = torch.tensor(halves, dtype=torch.float64) / 2
    random.shuffle(halves)
    again = torch.tensor(halves, dtype=torch.float64) / 2
    assert (ranking_metrics(ranks), retrieval_metrics(ranks)) == (ranking_metrics(again), retrieval_metrics(again))


# -- workers -----------------------------------------------------------------------------------------------------------


def _task() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(500, (230,), generator=generator)
    return torch.randn(230, 6, generator=generator), torch.randn(500, 6, generator=generator), true


def _rank_shares(worker: int, cuts: list[int], folder: Path) -> None:
    """Two workers share the queries out at each of ``cuts``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/sync", rank=worker, world_size=2)
    queries, candidates, true = _task()
    gathered = []
    for cut in cuts:
        share = slice(cut, None) if worker else slice(cut)
        ranks = rank_all(queries[share], candidates, true[share], score=dot, block=64)
        gathered.append(torch.cat(gather(ranks)))
    torch.save(gathered, folder / f"{worker}.pt")
    dist.destroy_process_group()


def test_every_worker_gets_the_ranks_that_one_alone_computes(tmp_path: Path) -> None:
    queries, candidates, true = _task()
    alone = rank_all(queries, candidates, true, score=dot, block=64)
    cuts = [90, 0, 230, 229]
    mp.start_processes(_rank_shares, args=(cuts, tmp_path), nprocs=2, start_method="fork")
    for worker in range(2):
        gathered = torch.load(tmp_path / f"{worker}.pt", weights_only=True)
        assert [torch.equal(ranks, alone) for ranks in gathered] == [True] * len(cuts)
