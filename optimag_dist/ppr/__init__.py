"""Personalised PageRank: push kernel, top-k rows, and the artefact a run reads them from."""

from optimag_dist.ppr.artefact import PPRArtefact
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ppr.graph import symmetrise
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.topk import ppr_topk

__all__ = ["PPRArtefact", "PPROptions", "compute_ppr", "ppr_topk", "symmetrise"]
