"""How well the mass that nodes keep finds planted conflicts, beside two ways that need no transport.

All three are numbers per node and modality, compared with the truth by the area under the ROC curve: the probability
that a node in conflict is ranked below one that is not. Nodes without neighbours are left out: nobody can tell.
On many graphs this is done by Ray tasks, each of which leaves a file with what it found.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from scipy.stats import rankdata
from torch.nn.functional import normalize

from optimag_dist.datasets import read_truth
from optimag_dist.files import atomic
from optimag_dist.ppr import PPRArtefact
from optimag_dist.ray_session import completed, explained, task_slots
from optimag_dist.sampling import SeedBatcher
from optimag_dist.store import GraphStore
from optimag_dist.train.options import VariantConfig
from optimag_dist.train.regularisers import has_diagnostics, kept_mass_of, make_regulariser
from optimag_dist.types import InputError, RunError

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
    """Modality → (n,) what each node keeps of its stored features' mass, measured in the group it is a target of,
    as at the end of a fit but for the configuration's own number of targets."""
    regulariser = make_regulariser(config.regulariser)
    if not has_diagnostics(regulariser):
        raise InputError(
            f"regulariser.kind={config.regulariser.kind}: has no diagnostics to tell the mass that it kept"
        )
    nodes = np.arange(store.num_nodes)
    batcher = SeedBatcher(nodes, store.num_nodes, ppr, config.sampling, seed=seed)
    kept = {name: np.full(store.num_nodes, np.nan, np.float32) for name in store.modalities}
    for step, groups in enumerate(batcher.items(0)):
        for index, targets in enumerate(groups):
            seeds = batcher.group(targets, key=(0, step, index)).seeds
            with torch.no_grad():
                regulariser(
                    {m: torch.from_numpy(store.gather(m, seeds)).float() for m in kept},
                    torch.from_numpy(ppr.submatrix(seeds)),
                    {m: torch.from_numpy(store.present(m)[seeds]) for m in kept},
                )
            for m, values in kept_mass_of(regulariser).items():
                kept[m][targets] = values[: len(targets)].numpy()
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


@dataclass(frozen=True)
class Detection:
    """One configuration on several draws of a graph: per draw a graph store, with the truth beside it, its PPR artefact
    and its seed."""

    stores: tuple[Path, ...]
    priors: tuple[Path, ...]
    config: VariantConfig
    seeds: tuple[int, ...]


def run_detections(
    asked: Sequence[Detection], directory: Path, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """A row per draw for each of ``asked``: ``seed``, ``seconds``, and the areas under the curve. Those whose file is
    in ``directory`` are not repeated, ``say`` is told how many have ended, ``RunError`` that some failed at the end."""
    files = [directory / f"{number:04d}.json" for number in range(len(asked))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    ended, errors = len(asked) - len(missing), list[BaseException]()
    slots = task_slots(lambda number: _detect.remote(asked[number], files[number]))
    with closing(completed(slots, missing)) as tasks:
        for _, task in tasks:
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                errors.append(explained(error) or error)
            else:
                ended += 1
                say(f"    {ended}/{len(asked)} cells")
    if errors:
        said = str(errors[0]).strip().splitlines()[-1][:300]
        raise RunError(
            f"{directory}: {len(errors)} of {len(asked)} detections failed, the first one with: {said}"
        ) from errors[0]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@ray.remote(num_cpus=1)
def _detect(detection: Detection, file: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    for place, prior, seed in zip(detection.stores, detection.priors, detection.seeds, strict=True):
        store, ppr = GraphStore.open(place), PPRArtefact.open(prior)
        started = time.perf_counter()
        kept = kept_mass(store, ppr, detection.config, seed)
        seconds = time.perf_counter() - started
        found = areas(store, {KEPT: kept, **without_transport(store, ppr)}, read_truth(place.parent))
        rows.append({"seed": seed, "seconds": seconds, **found})
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")
