"""Whole plain-KL solves against plans that ott-jax found, kept in ``ott_reference.json``.

ott writes the same problem with other constants (the square in front of the costs, the entropy against the counting
measure, τ for ρ); ``make_ott_reference.py`` has the mapping, and made the file. Neither ott nor jax is needed here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from optimag_dist.ufgw import solve_ufgw

REFERENCE = json.loads(Path(__file__).with_name("ott_reference.json").read_text())


def of(case):
    return ", ".join(f"{name}={case[name]}" for name in ("alpha", "rho", "epsilon"))


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_converged_plan_is_the_one_ott_finds(case, dtype):
    x = {name: torch.tensor(values, dtype=dtype) for name, values in REFERENCE["inputs"].items()}
    weights = {name: case[name] for name in ("alpha", "rho", "epsilon")}
    tight = {"tol": 1e-14} if dtype == torch.float64 else {}
    solution = solve_ufgw(x["C_m"], x["C_G"], x["M"], mu=x["mu"], nu=x["nu"], **weights, n_outer=400, **tight)
    theirs = np.array(case["plan"])
    error = np.abs(solution.plan.double().numpy() - theirs).sum() / theirs.sum()
    # Both are at rest to rounding: roundings of a cost of up to 4, over ε, a few of them.
    limit = 10 * 4 * torch.finfo(dtype).eps / case["epsilon"]
    assert error <= limit
    assert float(solution.plan.sum()) == pytest.approx(case["mass"], rel=limit)
