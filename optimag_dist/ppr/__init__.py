"""Personalised PageRank: push kernel, top-k rows, and the artefact a run reads them from."""

from optimag_dist.ppr.artefact import PPRArtefact
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.topk import ppr_topk
from optimag_dist.ppr.update import UpdateOptions, update_ppr
from optimag_dist.store.undirected import symmetrise

__all__ = [
    "PPRArtefact",
    "PPROptions",
    "UpdateOptions",
    "compute_ppr",
    "ppr_topk",
    "symmetrise",
    "update_ppr",
]
