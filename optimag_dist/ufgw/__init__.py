"""Unbalanced fused Gromov-Wasserstein transport between a modality and a graph, and the regulariser made of it.

Needs torch and the standard library, nothing else; where numba is installed, solves on the CPU are several times
faster. Training takes a regulariser, :class:`RobustRegulariser` unless told otherwise; :func:`solve_ufgw` is for one
problem (or a batch of them) by itself, with tensors or with costs that know their structure.
"""

from optimag_dist.ufgw.costs import CosineCost, DenseCost, SparseCost, anchor_cost, cosine_cost, graph_cost, graph_costs
from optimag_dist.ufgw.options import AlignmentOptions, LocalOptions, RobustOptions, UFGWOptions
from optimag_dist.ufgw.regulariser import (
    AlignmentRegulariser,
    LocalRegulariser,
    RobustRegulariser,
    UFGWDiagnostics,
    UFGWRegulariser,
)
from optimag_dist.ufgw.solution import REMEDIES, SolverStatus, UFGWSolution
from optimag_dist.ufgw.solver import solve_ufgw

__all__ = [
    "REMEDIES",
    "AlignmentOptions",
    "AlignmentRegulariser",
    "CosineCost",
    "DenseCost",
    "LocalOptions",
    "LocalRegulariser",
    "RobustOptions",
    "RobustRegulariser",
    "SolverStatus",
    "SparseCost",
    "UFGWDiagnostics",
    "UFGWOptions",
    "UFGWRegulariser",
    "UFGWSolution",
    "anchor_cost",
    "cosine_cost",
    "graph_cost",
    "graph_costs",
    "solve_ufgw",
]
