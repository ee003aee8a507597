"""Costs of the transport problem, as objects that know their structure.

    C_m = 1 − Z_m Z_mᵀ ;  C̄_m = C_m / mean(C_m)                     a factor of d + 2 columns    CosineCost
    C_G = −log(½(Π_B + Π_Bᵀ) + δ), shifted to min 0, over its mean    a constant less a sparse S   SparseCost
    M   = 1 − exp(−C̄_G / τ)                                         a constant less a sparse S   SparseCost
                                                                                              (arXiv 2601.22856)

The solver asks a cost for products only, and each kind gives them by its cheapest exact route. :class:`DenseCost` takes
any matrix. :func:`cosine_cost`, :func:`graph_cost` and :func:`anchor_cost` are the same three as plain tensors.
Nothing here reads a value back from a GPU.
"""

from optimag_dist.ufgw.costs.base import Cost
from optimag_dist.ufgw.costs.cosine import CosineCost, cosine_cost, cosine_costs
from optimag_dist.ufgw.costs.dense import AnchorCostKind, DenseCost, anchor_cost, graph_cost
from optimag_dist.ufgw.costs.sparse import SparseCost, graph_costs
