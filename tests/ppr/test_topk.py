"""Top-k push against exact personalised PageRank.

Oracle: π_s from a float64 linear solve (`exact_ppr`), whose own error for n ≤ 400 and β ≥ 0.05 is below 1e-12
(condition number at most 2/β). What push promises for p + βr is 0 ≤ π − value ≤ eps·deg; on top come float64 sums of
non-negative terms (relative 1e-13 for fewer than 1e3 of them) and the rounding down to float32 (at most 2⁻²³ of the
value, on the upper side only).
"""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ppr import ppr_topk, symmetrise
from optimag_dist.ppr.push import PushedRows, Workspace, push_top_k
from optimag_dist.ppr.topk import pack, push_sources
from optimag_dist.types import CSR, InputError

from .ppr_oracle import csr_of_arcs, exact_ppr, graphs, power_law, undirected_dense

SUM_ERROR = 1e-12
FLOAT32_BELOW = 2.0**-23


def dense_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray], num_nodes: int) -> np.ndarray:
    indptr, indices, values = rows
    dense = np.zeros((len(indptr) - 1, num_nodes))
    for i in range(len(dense)):
        dense[i, indices[indptr[i] : indptr[i + 1]]] = values[indptr[i] : indptr[i + 1]]
    return dense


def all_rows(csr: CSR, **options: object) -> np.ndarray:
    rows = ppr_topk(csr.indptr, csr.indices, np.arange(csr.num_nodes), k=csr.num_nodes, **options)  # type: ignore[arg-type]
    return dense_rows(rows, csr.num_nodes)


def assert_within_bound(value: np.ndarray, exact: np.ndarray, slack: np.ndarray) -> None:
    missing = exact - value
    assert missing.min() >= -SUM_ERROR
    assert (missing <= slack + FLOAT32_BELOW * exact + SUM_ERROR).all()


@settings(deadline=None, max_examples=60)
@given(graphs(), st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.sampled_from([0.3, 1e-2, 1e-4, 1e-7]))
def test_entries_are_below_exact_ppr_by_at_most_eps_degree(csr: CSR, teleport: float, eps: float) -> None:
    adjacency = undirected_dense(csr)
    value = all_rows(csr, teleport=teleport, eps=eps)
    assert_within_bound(value, exact_ppr(adjacency, teleport), eps * adjacency.sum(1))
    assert value.sum(1).max() <= 1 + SUM_ERROR


@settings(deadline=None, max_examples=60)
@given(graphs(), st.integers(1, 30), st.sampled_from([1e-1, 1e-3]))
def test_top_k_is_the_head_of_the_full_row(csr: CSR, k: int, eps: float) -> None:
    full = all_rows(csr, eps=eps)
    indptr, indices, values = ppr_topk(csr.indptr, csr.indices, np.arange(csr.num_nodes), eps=eps, k=k)
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
    for s in range(csr.num_nodes):
        by_value_then_id = np.lexsort((np.arange(csr.num_nodes), -full[s]))
        expected = [v for v in by_value_then_id if full[s, v] > 0][:k]
        assert indices[indptr[s] : indptr[s + 1]].tolist() == expected
        assert values[indptr[s] : indptr[s + 1]].tolist() == full[s, expected].tolist()


@settings(deadline=None, max_examples=40)
@given(graphs(), st.randoms(use_true_random=False))
def test_direction_duplicates_self_loops_and_order_of_arcs_do_not_matter(csr: CSR, random: object) -> None:
    """The answer is that of the undirected simple graph, bit for bit: rows are put in ascending order first."""
    adjacency = undirected_dense(csr)
    arcs = [(int(u), int(v)) for u, v in np.argwhere(adjacency)]
    simple = csr_of_arcs(csr.num_nodes, arcs)
    random.shuffle(arcs)  # type: ignore[attr-defined]
    shuffled = csr_of_arcs(csr.num_nodes, arcs)
    expected = all_rows(simple, assume_symmetric=True)
    np.testing.assert_array_equal(all_rows(csr), expected)
    np.testing.assert_array_equal(all_rows(shuffled), expected)


def test_isolated_node_keeps_all_of_its_walk() -> None:
    csr = csr_of_arcs(4, [(0, 1), (3, 3)])
    indptr, indices, values = ppr_topk(csr.indptr, csr.indices, [2, 3])
    assert indptr.tolist() == [0, 1, 2]
    assert indices.tolist() == [2, 3]
    assert values.tolist() == [1.0, 1.0]


def test_one_node() -> None:
    indptr, indices, values = ppr_topk([0, 0], [], [0, 0])
    assert (indptr.tolist(), indices.tolist(), values.tolist()) == ([0, 1, 2], [0, 0], [1.0, 1.0])


def test_no_sources() -> None:
    indptr, indices, values = ppr_topk([0, 1, 2], [1, 0], [])
    assert (indptr.tolist(), len(indices), len(values)) == ([0], 0, 0)


def test_star_matches_its_closed_form() -> None:
    """Hub h with L leaves: π_h(h) = β / (1 − (1−β)²) = 1 / (2 − β), every leaf (1−β) / (L (2 − β)); equal leaves are a
    tie, so the lowest ids are kept. eps·deg(hub) = 3e-7 bounds the error."""
    leaves, hub, eps = 300, 7, 1e-9
    arcs = [(hub, v) for v in range(leaves + 1) if v != hub]
    csr = csr_of_arcs(leaves + 1, arcs)
    _, indices, values = ppr_topk(csr.indptr, csr.indices, [hub], eps=eps, k=5)
    assert indices.tolist() == [7, 0, 1, 2, 3]
    beta = 0.15
    expected = np.array([1 / (2 - beta)] + [(1 - beta) / (leaves * (2 - beta))] * 4)
    np.testing.assert_allclose(values, expected, rtol=FLOAT32_BELOW, atol=eps * leaves)


def test_source_with_residual_below_threshold_still_has_its_teleport_share() -> None:
    """eps·deg ≥ 1: nothing is pushed, p = 0, and p + βr = β at the source is a valid lower bound."""
    _, indices, values = ppr_topk([0, 1, 2], [1, 0], [1], eps=2.0, teleport=0.25)
    assert (indices.tolist(), values.tolist()) == ([1], [0.25])


def test_agrees_with_networkx() -> None:
    """networkx stops at ‖Δ‖₁ < n·tol = 2e-9, an error below 2e-9 (1−β)/β ≈ 1.2e-8 per entry."""
    graph = nx.barabasi_albert_graph(200, 3, seed=1)
    matrix = nx.to_scipy_sparse_array(graph, format="csr")
    source, eps = 11, 1e-9
    exact = nx.pagerank(graph, alpha=0.85, personalization={source: 1.0}, tol=1e-11, max_iter=500)
    value = dense_rows(ppr_topk(matrix.indptr, matrix.indices, [source], eps=eps, k=200), 200)[0]
    missing = np.array([exact[v] for v in range(200)]) - value
    slack = eps * np.array([graph.degree(v) for v in range(200)]) + FLOAT32_BELOW * value
    assert (missing >= -1.2e-8).all()
    assert (missing <= slack + 1.2e-8).all()


def test_bound_on_a_power_law_graph() -> None:
    csr = power_law(400, 4, seed=2)
    adjacency = undirected_dense(csr)
    exact = exact_ppr(adjacency, 0.15)
    for eps in (1e-3, 1e-5):
        assert_within_bound(all_rows(csr, eps=eps), exact, eps * adjacency.sum(1))


@settings(deadline=None, max_examples=40)
@given(graphs(), st.sampled_from([0.3, 1e-2, 1e-5]))
def test_every_row_comes_with_a_bound_that_holds(csr: CSR, eps: float) -> None:
    csr = symmetrise(csr)
    n = csr.num_nodes
    rows = push_sources(csr, np.arange(n), teleport=0.15, eps=eps, k=n)
    values = dense_rows((rows.indptr, rows.indices, rows.values), n)
    adjacency = undirected_dense(csr)
    assert (rows.bounds <= np.nextafter(np.float32(eps), np.float32(1))).all()
    missing = exact_ppr(adjacency, 0.15) - values
    assert (missing <= rows.bounds[:, None] * adjacency.sum(1) + FLOAT32_BELOW * values + 1e-14).all()
    assert (missing >= -1e-14).all()


@settings(deadline=None, max_examples=40)
@given(graphs(), st.integers(0, 5))
def test_a_source_that_lacks_rows_says_which_and_the_others_are_as_ever(csr: CSR, seed: int) -> None:
    """Rows are put there as they are asked for; in the end the answer is that of the whole graph, bit for bit."""
    csr = symmetrise(csr)
    n = csr.num_nodes
    expected = push_sources(csr, np.arange(n), teleport=0.15, eps=1e-4, k=n)
    here = np.random.default_rng(seed).random(n) < 0.5
    out = PushedRows.allocate(n, n)
    out.sizes[:] = -1
    space, missing = Workspace.allocate(np.diff(csr.indptr)), np.empty(3, np.int32)
    for _ in range(n + 1):
        waiting = np.flatnonzero(out.sizes < 0)
        starts = np.where(here, csr.indptr[:-1], -1)
        got = PushedRows.allocate(len(waiting), n)
        _, _, count = push_top_k(starts, csr.indptr[1:], csr.indices, waiting, 0.15, 1e-4, space, missing, got)
        out.put(waiting, got, np.ones(len(waiting), bool))
        assert not here[missing[:count]].any()
        assert (count > 0) == (out.sizes < 0).any()
        here[missing[:count]] = True
    found = pack(out, 0, 0)
    for name in ("indices", "values", "bounds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def plain_push(adjacency: np.ndarray, source: int, teleport: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) p and (n,) r of the first-in first-out algorithm, as it is written down."""
    n = len(adjacency)
    degree = adjacency.sum(1)
    p, r = np.zeros(n), np.zeros(n)
    if degree[source] == 0:
        p[source] = 1.0
        return p, r
    r[source] = 1.0
    queue = [source] if r[source] > eps * degree[source] else []
    while queue:
        u = queue.pop(0)
        mass, r[u] = r[u], 0.0
        p[u] += teleport * mass
        for v in np.flatnonzero(adjacency[u]):
            before = r[v]
            r[v] += (1 - teleport) * mass / degree[u]
            if before <= eps * degree[v] < r[v]:
                queue.append(int(v))
    return p, r


@settings(deadline=None, max_examples=60)
@given(graphs(), st.sampled_from([0.15, 0.5]), st.sampled_from([0.3, 3e-2, 1e-3]))
def test_kernel_is_the_plain_algorithm(csr: CSR, teleport: float, eps: float) -> None:
    """The bound leaves room; this does not: same pushes in the same order, so only the last rounding differs."""
    adjacency = undirected_dense(csr)
    expected = np.zeros_like(adjacency)
    for s in range(csr.num_nodes):
        p, r = plain_push(adjacency, s, teleport, eps)
        expected[s] = p + teleport * r
    np.testing.assert_allclose(all_rows(csr, teleport=teleport, eps=eps), expected, rtol=2 * FLOAT32_BELOW)


def test_residual_share_improves_recall() -> None:
    csr = power_law(400, 4, seed=3)
    adjacency = undirected_dense(csr)
    exact = exact_ppr(adjacency, 0.15)
    k, eps = 32, 1e-3
    sources = np.arange(0, 400, 20)
    indptr, indices, _ = ppr_topk(csr.indptr, csr.indices, sources, eps=eps, k=k)
    with_residual, without = [], []
    for i, s in enumerate(sources):
        best = set(np.argsort(-exact[s])[:k].tolist())
        p, _ = plain_push(adjacency, int(s), 0.15, eps)
        estimated = {v for v in np.argsort(-p, kind="stable")[:k].tolist() if p[v] > 0}
        with_residual.append(len(best & set(indices[indptr[i] : indptr[i + 1]].tolist())) / k)
        without.append(len(best & estimated) / k)
    assert np.mean(with_residual) > np.mean(without) + 0.1


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_threads_and_company_change_no_bit(num_threads: int) -> None:
    """More sources than one thread takes at a time, in another order, with repetitions."""
    csr = power_law(700, 5, seed=4)
    sources = np.random.default_rng(5).permutation(np.concatenate([np.arange(700), np.arange(100)]))
    alone = [ppr_topk(csr.indptr, csr.indices, [s], num_threads=1, assume_symmetric=True) for s in sources]
    indptr, indices, values = ppr_topk(csr.indptr, csr.indices, sources, num_threads=num_threads)
    np.testing.assert_array_equal(indices, np.concatenate([row[1] for row in alone]))
    np.testing.assert_array_equal(values, np.concatenate([row[2] for row in alone]))
    np.testing.assert_array_equal(np.diff(indptr), [len(row[1]) for row in alone])


def test_slots_start_over_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel numbers first touches through all sources and starts over before int32 overflows."""
    csr = power_law(300, 4, seed=6)
    sources = np.arange(300)
    expected = ppr_topk(csr.indptr, csr.indices, sources, num_threads=1)
    allocate = Workspace.allocate

    def nearly_full(degrees: np.ndarray) -> Workspace:
        space = allocate(degrees)
        space.first_slot[0] = 2**31 - 1 - 2000
        return space

    monkeypatch.setattr(Workspace, "allocate", staticmethod(nearly_full))
    for came, needed in zip(ppr_topk(csr.indptr, csr.indices, sources, num_threads=1), expected, strict=True):
        np.testing.assert_array_equal(came, needed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teleport": 0.0}, "teleport"),
        ({"teleport": 1.0}, "teleport"),
        ({"teleport": float("nan")}, "teleport"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("inf")}, "eps"),
        ({"k": 0}, "k"),
        ({"num_threads": 0}, "num_threads"),
        ({"num_threads": 1.5}, "num_threads"),
        ({"teleport": "0.5"}, "teleport"),
        ({"eps": None}, "eps"),
        ({"k": 2.5}, "k"),
        ({"k": "3"}, "k"),
        ({"sources": [2**70]}, "sources"),
        ({"sources": np.array([2**63], np.uint64)}, "sources"),
        ({"sources": ["0"]}, "sources"),
        ({"indptr": [[0], [0, 1]]}, "indptr"),
        ({"indices": np.array([1, 0, 2**63, 1], np.uint64)}, "indices"),
        ({"indptr": np.array([0, 2**63, 3, 4], np.uint64)}, "indptr"),
        ({"indices": [1, 0, None, 1]}, "indices"),
        ({"sources": [0, 3]}, r"sources\[1\] = 3"),
        ({"sources": [-1]}, r"sources\[0\] = -1"),
        ({"sources": [0.5]}, "sources"),
        ({"sources": [[0]]}, "sources"),
        ({"indptr": []}, "indptr"),
        ({"indptr": [0]}, "indptr"),
        ({"indptr": [0, 2, 1, 4]}, "row 1"),
        ({"indptr": [0, 1, 3, 5]}, "0 to len"),
        ({"indptr": [1, 1, 3, 4]}, "0 to len"),
        ({"indices": [1, 0, 3, 1]}, r"indices\[2\] = 3"),
        ({"indices": [1, 0, -1, 1]}, r"indices\[2\] = -1"),
        ({"indices": [1.0, 0.0, 2.0, 1.0]}, "indices"),
    ],
)
def test_unusable_input_is_named(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"indptr": [0, 1, 3, 4], "indices": [1, 0, 2, 1], "sources": [0]}
    with pytest.raises(InputError, match=message):
        ppr_topk(**{**arguments, **changed})  # type: ignore[arg-type]
