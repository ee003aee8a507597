"""On a GPU: the same answers as on the CPU, no wait for the device within the steps, and replays that see new input.

The Triton sweep also runs in Triton's interpreter on a CPU, where Triton is installed (torch's CUDA builds bring it).
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from optimag_dist.ufgw import CosineCost, DenseCost, anchor_cost, graph_cost, solve_ufgw
from optimag_dist.ufgw.capture import map_tensors, tensors
from optimag_dist.ufgw.problem import UFGWProblem
from optimag_dist.ufgw.sinkhorn import sinkhorn_exp
from optimag_dist.ufgw.solver import Budget, outer_steps

from .ufgw_oracle import make_regulariser

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def group(nodes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    walk = torch.rand(nodes, nodes, generator=generator, dtype=dtype) ** 8
    z = torch.randn(2, nodes, 8, generator=generator, dtype=dtype)
    return z, 0.3 * torch.eye(nodes, dtype=dtype) + 0.1 * walk


def problem_on(device: str, seed: int = 0, nodes: int = 60) -> UFGWProblem:
    z, proximity = (x.to(device) for x in group(nodes, seed))
    C_G = graph_cost(proximity)[None]
    mass = torch.full((1, nodes), 1 / nodes, dtype=z.dtype, device=device)
    rho = torch.full((1, 1), 0.1, dtype=z.dtype, device=device)
    costs = CosineCost.from_embeddings(z), DenseCost(C_G), DenseCost(anchor_cost(C_G, 1.0))
    return UFGWProblem.build(*costs, mass, mass, rho, rho, alpha=0.6, epsilon=0.05)


def test_a_copied_problem_carries_everything_a_recording_needs():
    problem, budget = problem_on("cpu"), Budget(3, 10)
    expected = tensors(outer_steps(problem, budget, sinkhorn_exp))
    copied = map_tensors(torch.clone, problem)
    # Nothing may have been cached from the tensors copied from: with other values in place the answer is another.
    for mine, other in zip(tensors(copied), tensors(problem_on("cpu", seed=1)), strict=True):
        mine.copy_(other)
    found = tensors(outer_steps(copied, budget, sinkhorn_exp))
    fresh = tensors(outer_steps(problem_on("cpu", seed=1), budget, sinkhorn_exp))
    assert all(torch.equal(x, y) for x, y in zip(found, fresh, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


SWEEP = """
import torch
from optimag_dist.ufgw import triton_sinkhorn

for nodes in (5, 130):
    generator = torch.Generator().manual_seed(nodes)
    kernel = torch.rand(2, nodes, nodes, generator=generator, dtype=torch.float64) + 1e-3
    b, row_scale, column_scale = (torch.rand(2, nodes, generator=generator, dtype=torch.float64) for _ in range(3))
    kappa_mu, kappa_nu = torch.full_like(b, 0.9), torch.full_like(b, 0.7)
    row_scale[0, 3] = 0
    found = triton_sinkhorn.iterate(kernel, b, row_scale, column_scale, kappa_mu, kappa_nu, 3)
    for _ in range(3):
        rows = (kernel @ b[..., None])[..., 0]
        a = row_scale * rows**-kappa_mu
        columns = (a[:, None] @ kernel)[:, 0]
        b = column_scale * columns**-kappa_nu
    for mine, expected in zip(found, (a, b, rows, columns)):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=0)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_sweep_is_sinkhorns_iteration_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", SWEEP],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_gpu_equals_cpu(marginal):
    z, proximity = group(200)
    C_G = graph_cost(proximity)
    answers = []
    for device in ("cpu", "cuda"):
        costs = CosineCost.from_embeddings(z.to(device)), C_G.to(device), anchor_cost(C_G, 1.0).to(device)
        answers.append(solve_ufgw(*costs, epsilon=0.05, marginal=marginal))
    torch.testing.assert_close(answers[1].plan.cpu(), answers[0].plan, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(answers[1].objective.cpu(), answers[0].objective, rtol=1e-10, atol=0)


@pytest.mark.gpu
@needs_gpu
def test_replays_see_new_input_and_keep_old_answers():
    for seed in (0, 1, 0):
        z, proximity = group(128, seed, torch.float32)
        C_G = graph_cost(proximity)
        costs = [x.cuda() for x in (C_G, anchor_cost(C_G, 1.0))]
        found = solve_ufgw(CosineCost.from_embeddings(z.cuda()), *costs, epsilon=0.05)
        kept = found.plan.clone()
        expected = solve_ufgw(CosineCost.from_embeddings(z), C_G, anchor_cost(C_G, 1.0), epsilon=0.05)
        assert float((found.plan.cpu() - expected.plan).abs().sum() / expected.plan.sum()) <= 1e-4
        solve_ufgw(CosineCost.from_embeddings(z.flip(1).cuda()), *costs, epsilon=0.05)
        assert torch.equal(found.plan, kept)


@pytest.mark.gpu
@needs_gpu
def test_the_steps_never_wait_for_the_device():
    problem = problem_on("cuda")
    outer_steps(problem, Budget(1, 2), sinkhorn_exp)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outer_steps(problem, Budget(3, 5), sinkhorn_exp)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "ufgw", "rho": 0.1, "tau": 1.0, "epsilon": 0.05},
        {"kind": "robust"},
        {"kind": "local", "consistency": 0.5},
        {"kind": "local", "consistency": 0.5, "differentiate": True},
    ],
)
def test_the_regularisers_gradient_on_a_gpu_is_that_on_the_cpu(options):
    z, proximity = group(96)
    gradients = []
    for device in ("cpu", "cuda"):
        leaf = z.to(device).requires_grad_()
        make_regulariser(**options)({"text": leaf[0], "image": leaf[1]}, proximity.to(device)).backward()
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-12)
