import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ufgw import anchor_cost, cosine_cost, graph_cost


@settings(deadline=None, max_examples=30)
@given(nodes=st.integers(2, 12), dim=st.integers(2, 6), seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_cosine_cost_is_one_minus_cosine_over_its_mean(nodes, dim, seed, scale):
    z = torch.randn(nodes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cost = cosine_cost(z * scale)
    expected = torch.stack([1 - torch.cosine_similarity(z, row[None]) for row in z]).clamp_min(0)
    # Not divided: rows that nearly agree have a mean that would blow up the rounding of 1 − cosine.
    torch.testing.assert_close(cost * expected.mean(), expected, rtol=1e-9, atol=1e-12)
    assert float(cost.mean()) == pytest.approx(1)


def test_a_row_of_zeros_counts_as_absent():
    z = torch.randn(5, 3, dtype=torch.float64)
    z[2] = 0
    present = torch.arange(5) != 2
    torch.testing.assert_close(cosine_cost(z), cosine_cost(z, present), rtol=0, atol=0)
    torch.testing.assert_close(cosine_cost(z * 1e-200), cosine_cost(z), rtol=1e-9, atol=1e-12)


def test_cosine_cost_of_present_nodes_is_that_without_the_others():
    z = torch.randn(6, 3, dtype=torch.float64)
    z[4] = math.nan
    present = torch.tensor([True, True, False, True, False, True])
    cost = cosine_cost(z, present)
    torch.testing.assert_close(cost[present][:, present], cosine_cost(z[present]))
    assert (cost[~present] == 0).all()
    assert (cost[:, ~present] == 0).all()


def test_cosine_cost_gradient_runs_through_the_mean_and_spares_absent_rows():
    z = torch.randn(5, 3, dtype=torch.float64)
    z[2] = math.nan
    present = torch.tensor([True, True, False, True, True])
    z.requires_grad_()
    # The mean over present pairs is 1 whatever z is, so the gradient of the sum is 0 only if the mean is in the graph.
    (total,) = torch.autograd.grad(cosine_cost(z, present).sum(), z)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-12, rtol=0)
    (weighted,) = torch.autograd.grad((cosine_cost(z, present) * torch.rand(5, 5, dtype=torch.float64)).sum(), z)
    assert (weighted[2] == 0).all()
    assert (weighted[present] != 0).any()


def test_collapsed_embeddings_have_no_structure_instead_of_amplified_rounding():
    z = torch.ones(8, 5) * torch.rand(8, 1)
    z.requires_grad_()
    cost = cosine_cost(z)
    assert (cost == 0).all()
    cost.sum().backward()
    assert z.grad.isfinite().all()


def test_cosine_cost_under_autocast_is_single_precision():
    z = torch.randn(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cosine_cost(z), cosine_cost(z.double()).float(), rtol=1e-5, atol=1e-6)
    assert cosine_cost(z.half()).dtype == torch.float32


def test_graph_cost_by_hand():
    proximity = torch.tensor([[0.5, 0.3], [0.1, 0.5]], dtype=torch.float64)
    # −log of .5, .2 and .5, less the smallest: 0 and log 2.5; their mean is log(2.5)/2
    expected = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(graph_cost(proximity, delta=1e-12), expected, rtol=1e-9, atol=1e-9)


def test_graph_cost_of_a_graph_that_says_nothing_is_zero():
    assert (graph_cost(torch.zeros(4, 4)) == 0).all()


def test_anchor_priors():
    C_G = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    far = 1 - math.exp(-4)
    torch.testing.assert_close(anchor_cost(C_G, 0.5), torch.tensor([[0, far], [far, 0]], dtype=torch.float64))
    torch.testing.assert_close(anchor_cost(C_G, kind="identity"), torch.tensor([[0, 1], [1, 0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="tau"):
        anchor_cost(C_G, 0.0)
    with pytest.raises(ValueError, match="delta"):
        graph_cost(C_G, 0.0)
    with pytest.raises(ValueError, match="'ppr', 'identity'"):
        anchor_cost(C_G, kind="none")
