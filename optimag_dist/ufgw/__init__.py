"""Unbalanced fused Gromov-Wasserstein transport between a modality and a graph, and the regulariser made of it.

Needs torch and the standard library, nothing else; where numba is installed, solves on the CPU are several times
faster. Training takes :class:`LocalRegulariser` or :class:`TransportRegulariser`; :func:`solve_ufgw` is for
one problem (or a batch of them) by itself, with tensors or with costs that know their structure.
"""

from optimag_dist.ufgw.costs import CosineCost, DenseCost, SparseCost, anchor_cost, cosine_cost, graph_cost, graph_costs
from optimag_dist.ufgw.options import LocalOptions, TransportOptions, UFGWOptions
from optimag_dist.ufgw.regulariser import LocalRegulariser, TransportRegulariser, UFGWDiagnostics, UFGWRegulariser
from optimag_dist.ufgw.solution import REMEDIES, SolverStatus, UFGWSolution
from optimag_dist.ufgw.solver import solve_ufgw

__all__ = [
    "REMEDIES",
    "CosineCost",
    "DenseCost",
    "LocalOptions",
    "LocalRegulariser",
    "SolverStatus",
    "SparseCost",
    "TransportOptions",
    "TransportRegulariser",
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
