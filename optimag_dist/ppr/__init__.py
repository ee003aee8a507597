"""Personalised PageRank: push kernel, top-k rows, and the artefact a run reads them from; computed by
:mod:`optimag_dist.ppr.driver` and :mod:`optimag_dist.ppr.update`, which need Ray."""

from optimag_dist.ppr.artefact import PPRArtefact, PPROptions
from optimag_dist.ppr.topk import ppr_topk
from optimag_dist.store.csr import symmetrise
