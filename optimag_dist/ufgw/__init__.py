"""Unbalanced fused Gromov-Wasserstein transport between a modality and a graph, and the regulariser made of it.

Needs torch and the standard library, nothing else; where numba is installed, solves on the CPU are several times
faster. The way in is :class:`UFGWRegulariser` for training and :func:`solve_ufgw` for one problem (or a batch of them)
by itself, with tensors or with costs that know their structure.
"""

from optimag_dist.ufgw.costs import (
    CosineCost,
    DenseCost,
    SparseCost,
    anchor_cost,
    cosine_cost,
    graph_cost,
    graph_costs,
)
from optimag_dist.ufgw.regulariser import UFGWDiagnostics, UFGWRegulariser
from optimag_dist.ufgw.solution import REMEDIES, SolverStatus, UFGWSolution
from optimag_dist.ufgw.solver import solve_ufgw

__all__ = [
    "REMEDIES",
    "CosineCost",
    "DenseCost",
    "SolverStatus",
    "SparseCost",
    "UFGWDiagnostics",
    "UFGWRegulariser",
    "UFGWSolution",
    "anchor_cost",
    "cosine_cost",
    "graph_cost",
    "graph_costs",
    "solve_ufgw",
]
