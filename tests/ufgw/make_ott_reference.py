"""Writes ``ott_reference.json``: plain-KL plans found by ott-jax, with the inputs they belong to.

How to run it (the tests only read the file, and need neither jax nor ott):

    python -m venv ott && ott/bin/pip install ott-jax
    ott/bin/python tests/ufgw/make_ott_reference.py

ott solves ⟨M', π⟩ + L'⊗π linearised at the last plan, with ``gw_unbalanced_correction=False`` plain KL of the marginals
with ρ = ε τ/(1 − τ), and the entropy ε Σ π log π. Our steps solve (1−α)M + 2α L⊗π and take the entropy against μ⊗ν, so

    C' = √(2α) C   (L is quadratic in the costs)        M' = (1−α)M − ε log μ⊗ν        τ = ρ/(ρ+ε)

The plan is taken from the last linear problem: ``GWOutput.matrix`` scales it by the masses of two iterations once more.
Inputs have three decimals and are therefore the same numbers in every program.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ott
from ott.geometry.geometry import Geometry
from ott.solvers import quadratic

FILE = Path(__file__).with_name("ott_reference.json")
NODES = 16
SEED = 0
WEIGHTS = [
    {"alpha": 0.6, "rho": 1.0, "epsilon": 0.1},
    {"alpha": 0.6, "rho": 0.1, "epsilon": 0.05},
    {"alpha": 0.2, "rho": 0.1, "epsilon": 0.02},
]


def inputs() -> dict[str, np.ndarray]:
    """Costs with a mean near 1, C_G with something of C_m in it, and marginals that are not uniform."""
    rng = np.random.default_rng(SEED)
    z = rng.normal(size=(NODES, 3))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    C_m = 1 - z @ z.T
    noise = rng.random((NODES, NODES))
    C_G = C_m + 0.5 * (noise + noise.T)
    np.fill_diagonal(C_G, 0)
    M = 1 - np.exp(-2 * C_G / C_G.mean())
    masses = {name: rng.integers(30, 95, NODES) for name in ("mu", "nu")}
    for x in masses.values():
        x[-1] += 1000 - x.sum()  # whole thousandths that sum to 1
        assert x[-1] > 0
    costs = {"C_m": C_m, "C_G": C_G / C_G.mean(), "M": M}
    return {name: x.round(3) + 0.0 for name, x in costs.items()} | {name: x / 1000 for name, x in masses.items()}


def solve(x: dict[str, np.ndarray], alpha: float, rho: float, epsilon: float) -> np.ndarray:
    tau = rho / (rho + epsilon)
    found = quadratic.solve(
        Geometry(cost_matrix=jnp.asarray((2 * alpha) ** 0.5 * x["C_m"])),
        Geometry(cost_matrix=jnp.asarray((2 * alpha) ** 0.5 * x["C_G"])),
        Geometry(cost_matrix=jnp.asarray((1 - alpha) * x["M"] - epsilon * np.log(np.outer(x["mu"], x["nu"])))),
        a=jnp.asarray(x["mu"]),
        b=jnp.asarray(x["nu"]),
        tau_a=tau,
        tau_b=tau,
        gw_unbalanced_correction=False,
        epsilon=epsilon,
        warm_start=True,
        min_iterations=1000,
        max_iterations=1000,
        threshold=0.0,
        linear_solver_kwargs={"threshold": 1e-15, "max_iterations": 2000},
    )
    plan = np.asarray(found.linear_state.matrix)
    # At rest the last linear problem is the one linearised at its own answer: the KKT equation of the whole problem.
    p, q = plan.sum(1), plan.sum(0)
    moved = (x["C_m"] ** 2 @ p)[:, None] + x["C_G"] ** 2 @ q - 2 * x["C_m"] @ plan @ x["C_G"]
    residual = (
        (1 - alpha) * x["M"]
        + 2 * alpha * moved
        + rho * (np.log(p / x["mu"])[:, None] + np.log(q / x["nu"]))
        + epsilon * np.log(plan / np.outer(x["mu"], x["nu"]))
    )
    print(alpha, rho, epsilon, "mass", plan.sum(), "residual", np.abs(residual).max())
    assert np.abs(residual).max() < 1e-12
    return plan


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    x = inputs()
    cases = []
    for weights in WEIGHTS:
        plan = solve(x, **weights)
        cases.append({**weights, "mass": plan.sum(), "plan": plan.tolist()})
    written = {"made_by": f"ott-jax {ott.__version__}, jax {jax.__version__}", "seed": SEED}
    content = {**written, "inputs": {name: value.tolist() for name, value in x.items()}, "cases": cases}
    FILE.write_text(json.dumps(content, indent=None, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
