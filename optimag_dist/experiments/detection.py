"""How well the mass that nodes keep finds planted conflicts, beside two ways that need no transport.

All three are numbers per node and modality, compared with the truth by the area under the ROC curve: the probability
that a node in conflict is ranked below one that is not. Nodes without neighbours are left out: nobody can tell.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn.functional import normalize

from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import SeedBatcher
from optimag_dist.store import GraphStore
from optimag_dist.train.options import VariantConfig
from optimag_dist.train.regularisers import has_diagnostics, kept_mass_of, make_regulariser
from optimag_dist.types import InputError

# The ways to find conflicts, as in the tables' columns.
KEPT, MISMATCH, NEIGHBOURS = "kept mass", "PPR-weighted mismatch", "neighbours' mean"


def area_under_curve(trust: np.ndarray, conflict: np.ndarray) -> float:
    """(k,) numbers, (k,) bool → probability that a conflict has the lower number, ties half; NaN without a pair."""
    positives = int(conflict.sum())
    negatives = len(conflict) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(-trust)
    return float((ranks[conflict].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def kept_mass(store: GraphStore, ppr: PPRArtefact, config: VariantConfig, seed: int) -> dict[str, np.ndarray]:
    """Modality → (n,) what each node keeps of its stored features' mass, measured in the group it is an anchor of,
    as at the end of a fit but for the configuration's own number of anchors."""
    regulariser = make_regulariser(config.regulariser)
    if not has_diagnostics(regulariser):
        raise InputError(
            f"regulariser.kind={config.regulariser.kind}: has no diagnostics to tell the mass that it kept"
        )
    nodes = np.arange(store.num_nodes)
    batcher = SeedBatcher(nodes, store.num_nodes, ppr, config.sampling, seed=seed)
    kept = {name: np.full(store.num_nodes, np.nan, np.float32) for name in store.modalities}
    for step, groups in enumerate(batcher.items(0)):
        for index, anchors in enumerate(groups):
            seeds = batcher.group(anchors, key=(0, step, index)).seeds
            with torch.no_grad():
                regulariser(
                    {m: torch.from_numpy(store.gather(m, seeds)).float() for m in kept},
                    torch.from_numpy(ppr.submatrix(seeds)),
                    {m: torch.from_numpy(store.present(m)[seeds]) for m in kept},
                )
            for m, values in kept_mass_of(regulariser).items():
                kept[m][anchors] = values[: len(anchors)].numpy()
    return kept


def without_transport(store: GraphStore, ppr: PPRArtefact) -> dict[str, dict[str, np.ndarray]]:
    """Way → modality → (n,) trust: minus the PPR-weighted mean distance to the others, and the cosine to the mean of
    the neighbours' features."""
    nodes = np.arange(store.num_nodes)
    indptr, columns, values = ppr.rows(nodes)
    rows = np.repeat(nodes, np.diff(indptr))
    topology = store.topology
    ways: dict[str, dict[str, np.ndarray]] = {MISMATCH: {}, NEIGHBOURS: {}}
    for m in store.modalities:
        present = store.present(m)
        z = normalize(torch.from_numpy(store.gather(m, nodes)).float(), dim=1).numpy()
        near = (rows != columns) & present[rows] & present[columns]
        i, k, weight = rows[near], columns[near], values[near]
        distance = 1 - (z[i] * z[k]).sum(1)
        total = np.bincount(i, weight, store.num_nodes)
        ways[MISMATCH][m] = -np.bincount(i, weight * distance, store.num_nodes) / np.maximum(total, 1e-12)
        i, k = np.repeat(nodes, np.diff(topology.indptr)), np.asarray(topology.indices, np.int64)
        there = present[i] & present[k]
        mean = np.zeros_like(z)
        np.add.at(mean, i[there], z[k[there]])
        length = np.linalg.norm(mean, axis=1).clip(1e-12)
        ways[NEIGHBOURS][m] = (z * mean).sum(1) / length
    return ways


def areas(
    store: GraphStore, ways: Mapping[str, Mapping[str, np.ndarray]], truth: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """``auc/<way>/<modality>``, and ``auc/<way>``, the mean over modalities that have conflicts and nodes without."""
    found: dict[str, float] = {}
    for way, by_modality in ways.items():
        values = []
        for m, trust in by_modality.items():
            known = store.present(m) & (np.diff(store.topology.indptr) > 0) & np.isfinite(trust)
            value = area_under_curve(trust[known], truth[m][known])
            found[f"auc/{way}/{m}"] = value
            values.append(value)
        values = [value for value in values if value == value]
        found[f"auc/{way}"] = float(np.mean(values)) if values else float("nan")
    return found
