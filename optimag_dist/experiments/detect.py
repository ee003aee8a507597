"""Detections as Ray tasks: each finds conflicts in stored features of some graphs and leaves a file with how well."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from optimag_dist.datasets import read_truth
from optimag_dist.experiments.detection import KEPT, areas, kept_mass, without_transport
from optimag_dist.files import atomic
from optimag_dist.ppr import PPRArtefact
from optimag_dist.ray_session import completed, explained, task_slots
from optimag_dist.store import GraphStore
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import RunError


@dataclass(frozen=True)
class Detection:
    """One configuration, of the regulariser and the groups, on several draws of a graph.

    Attributes:
        stores, priors: a graph store and its PPR artefact, per draw; the truth lies beside the store.
        seeds: of the draws.
    """

    stores: tuple[Path, ...]
    priors: tuple[Path, ...]
    config: VariantConfig
    seeds: tuple[int, ...]


def run_detections(
    asked: Sequence[Detection], directory: Path, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """A row per draw for each of ``asked``: ``seed``, ``seconds``, and the areas under the curve.

    Those whose file is in ``directory`` are not repeated. ``say`` is told how many have ended.

    Raises:
        RunError: some have failed; the others have been run.
    """
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
