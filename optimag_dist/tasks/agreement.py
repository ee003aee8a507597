"""How far neighbours share a class, of training nodes: whether what the graph says is worth aligning to."""

import math
from dataclasses import dataclass

import numpy as np

from optimag_dist.ppr import PPRArtefact

# Adjusted homophily from which the graph is taken at its word.
_ENOUGH = 0.3
# Chance from which pairs are all of one class: it is a sum, and rounded.
_ONE_CLASS = 1 - 1e-9


@dataclass(frozen=True)
class ClassAgreement:
    """Of pairs of training nodes, weighted by PPR.

    Attributes:
        observed: share that is of one class.
        chance: the same if classes were dealt at random among these pairs.
        pairs: how many they are worth, (Σ w)² / Σ w².
    """

    observed: float
    chance: float
    pairs: float

    @property
    def adjusted(self) -> float:
        """Adjusted homophily (Platonov et al. 2023): 1 where all pairs are of one class, 0 by chance."""
        return (self.observed - self.chance) / (1 - self.chance)

    @property
    def strength(self) -> float:
        """How far to align to the graph, 0 to 1: what is left of :attr:`adjusted` when a standard error is taken off,
        over what is enough. 1 where there are no pairs to tell by, or these are of one class."""
        if self.pairs < 1 or self.chance > _ONE_CLASS:
            return 1.0
        error = math.sqrt(max(self.observed * (1 - self.observed), self.chance * (1 - self.chance)) / self.pairs)
        return min(1.0, max(0.0, (self.adjusted - error / (1 - self.chance)) / _ENOUGH))

    def __str__(self) -> str:
        return (
            f"neighbours share a class in {self.observed:.0%} of pairs of training nodes, by chance "
            f"{self.chance:.0%}: alignment was held at {self.strength:.0%} of its share"
        )


def class_agreement(ppr: PPRArtefact, nodes: np.ndarray, labels: np.ndarray) -> ClassAgreement:
    """Of ``nodes`` (k,), with ``labels`` (n,) int64 of the whole graph, ≥ 0 at the nodes; reads no other label."""
    indptr, columns, values = ppr.rows(nodes)
    rows = np.repeat(nodes, np.diff(indptr))
    known = np.zeros(len(labels), bool)
    known[nodes] = True
    near = known[columns] & (columns != rows)
    rows, columns, weight = rows[near], columns[near], values[near].astype(np.float64)
    total = weight.sum()
    if total == 0:
        return ClassAgreement(math.nan, math.nan, 0.0)
    classes = int(labels[nodes].max()) + 1
    of_rows, of_columns = (np.bincount(labels[x], weight, classes) / total for x in (rows, columns))
    observed = float(weight[labels[rows] == labels[columns]].sum() / total)
    return ClassAgreement(observed, float(of_rows @ of_columns), float(total**2 / (weight**2).sum()))
