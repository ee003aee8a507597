"""Unbalanced fused Gromov-Wasserstein transport between a modality and a graph, and the regulariser made of it.

Needs torch and the standard library, nothing else. The way in is :class:`UFGWRegulariser` for training and
:func:`solve_ufgw` for one problem (or a batch of them) by itself.
"""

from optimag_dist.ufgw.costs import anchor_prior, cosine_cost, graph_cost
from optimag_dist.ufgw.regulariser import UFGWDiagnostics, UFGWRegulariser
from optimag_dist.ufgw.solution import SolverStatus, UFGWSolution
from optimag_dist.ufgw.solver import solve_ufgw

__all__ = [
    "SolverStatus",
    "UFGWDiagnostics",
    "UFGWRegulariser",
    "UFGWSolution",
    "anchor_prior",
    "cosine_cost",
    "graph_cost",
    "solve_ufgw",
]
