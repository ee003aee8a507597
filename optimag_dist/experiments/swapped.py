"""Conflicts that are planted in a real graph, and how well kept mass finds them, beside the neighbours' mean.

Of each modality a known share of the nodes shows the features of a node of another class. Features are compared as they
are stored: nothing is trained. A node without neighbours is left out, as in :mod:`optimag_dist.experiments.detection`.
"""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from optimag_dist.experiments.detection import KEPT, NEIGHBOURS, areas, kept_mass, without_transport
from optimag_dist.ppr import PPRArtefact
from optimag_dist.report.measure import Measure, mean_interval
from optimag_dist.store import GraphStore
from optimag_dist.store.layout import read_meta
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError


class SwappedStore(GraphStore):
    """``store``, in which a ``share`` of the nodes that have a modality show another's, drawn by ``seed``.

    Attributes:
        truth: modality → (n,) bool, which nodes do.

    Raises:
        InputError: the store has no labels, or only one class.
    """

    def __init__(self, store: GraphStore, share: float, seed: int) -> None:
        super().__init__(store.path, read_meta(store.path), store.location)
        labels = self.labels
        if labels is None or len(np.unique(labels[labels >= 0])) < 2:
            raise InputError(f"{store.path}: conflicts are planted between classes; needed labels of two or more")
        self.truth: dict[str, np.ndarray] = {}
        self._shown: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.modalities):
            rng = np.random.default_rng((seed, number))
            nodes = np.flatnonzero(self.present(name) & (labels >= 0))
            chosen = rng.choice(nodes, round(share * len(nodes)), replace=False)
            others = rng.choice(nodes, len(chosen))
            while (same := labels[others] == labels[chosen]).any():
                others[same] = rng.choice(nodes, int(same.sum()))
            self._shown[name] = np.arange(self.num_nodes)
            self._shown[name][chosen] = others
            self.truth[name] = np.isin(np.arange(self.num_nodes), chosen)

    def gather(self, modality: str, node_ids: np.ndarray) -> np.ndarray:
        return super().gather(modality, self._shown[modality][node_ids])


def areas_of_swapped(
    store: GraphStore, ppr: PPRArtefact, config: VariantConfig, *, share: float, seeds: Sequence[int]
) -> list[dict[str, float]]:
    """Per seed the areas under the curve of kept mass and of the neighbours' mean, as of
    :func:`~optimag_dist.experiments.detection.areas`; groups are those that a fit ends with."""
    judging = config.model_copy(update={"sampling": config.sampling.for_kept_mass})
    found = []
    for seed in seeds:
        swapped = SwappedStore(store, share, seed)
        ways = {KEPT: kept_mass(swapped, ppr, judging, seed), NEIGHBOURS: without_transport(swapped, ppr)[NEIGHBOURS]}
        found.append(areas(swapped, ways, swapped.truth))
    return found


def render_swapped(rows: Sequence[dict[str, float]], modalities: Sequence[str], console: Console) -> None:
    """Print a table of :func:`areas_of_swapped`, per modality, with paired differences."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(("conflicts in", NEIGHBOURS, KEPT, "difference")):
        table.add_column(heading, justify="right" if number else "left")
    measure = Measure(KEPT, digits=1)
    for name in modalities:
        theirs, mine = ([100 * row[f"auc/{way}/{name}"] for row in rows] for way in (NEIGHBOURS, KEPT))
        gap = mean_interval([a - b for a, b in zip(mine, theirs, strict=True)])
        cells = [*(measure.show(mean_interval(values)) for values in (theirs, mine)), measure.show_difference(gap)]
        cells[-1] += " *" * gap.excludes_zero
        table.add_row(name, *cells, style="bold" if gap.excludes_zero else None)
    console.print(table)
    console.print(
        f"Area under the ROC curve in per cent, mean ± 95 % interval over {len(rows)} draws, of features as stored; "
        "* the interval of the difference excludes 0."
    )
