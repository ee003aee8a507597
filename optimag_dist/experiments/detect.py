"""Detections as trials of Ray Tune: each judges stored features on some graphs and leaves a file with the answers."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial

from optimag_dist.datasets import read_truth
from optimag_dist.experiments.detection import KEPT, areas, kept_mass, without_transport
from optimag_dist.files import atomic
from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.train.options import VariantConfig
from optimag_dist.tune.sweep import quieten
from optimag_dist.types import RunError


@dataclass(frozen=True)
class Detection:
    """One configuration on several draws of a graph.

    Attributes:
        stores, priors: a graph store and its PPR artefact, per draw; the truth lies beside the store.
        config: of the regulariser and the groups.
        seeds: of the draws.
    """

    stores: tuple[Path, ...]
    priors: tuple[Path, ...]
    config: VariantConfig
    seeds: tuple[int, ...]


class _Told(tune.Callback):
    """A line for each detection that has ended."""

    def __init__(self, ended: int, asked: int, say: Callable[[str], None]) -> None:
        self._ended, self._asked, self._say = ended, asked, say

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended += 1
        self._say(f"    {self._ended}/{self._asked} cells")


def run_detections(
    asked: Sequence[Detection], directory: Path, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """A row per draw for each of ``asked``: ``seed``, ``seconds``, and the areas under the curve.

    Those whose file is in ``directory`` are not repeated. ``say`` is told how many have ended.

    Raises:
        RunError: one has failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:04d}.json" for number in range(len(asked))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if missing:
        quieten()
        analysis = tune.run(
            tune.with_resources(tune.with_parameters(_trial, asked=list(asked), directory=directory), {"CPU": 1}),
            config={"number": tune.grid_search(missing)},
            name="tune",
            storage_path=str(directory),
            trial_dirname_creator=lambda trial: trial.trial_id,
            reuse_actors=True,
            raise_on_failed_trial=False,
            callbacks=[_Told(len(asked) - len(missing), len(asked), say)],
            verbose=0,
        )
        lost = [number for number in missing if not files[number].exists()]
        if lost:
            errors = [trial.error_file for trial in analysis.trials if trial.error_file]
            said = Path(errors[0]).read_text(encoding="utf-8").strip().splitlines()[-1] if errors else "no error known"
            raise RunError(
                f"{directory}: {len(lost)} of {len(asked)} detections failed, the first one with: {said[:300]}"
            )
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _trial(config: dict[str, Any], asked: Sequence[Detection], directory: Path) -> None:
    number = config["number"]
    torch.set_num_threads(1)
    detection = asked[number]
    rows = [_judge(detection, draw) for draw in range(len(detection.stores))]
    with atomic(directory / f"{number:04d}.json") as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")
    tune.report({"done": True})


def _judge(detection: Detection, draw: int) -> dict[str, Any]:
    store, ppr = GraphStore.open(detection.stores[draw]), PPRArtefact.open(detection.priors[draw])
    started = time.perf_counter()
    kept = kept_mass(store, ppr, detection.config, detection.seeds[draw])
    seconds = time.perf_counter() - started
    ways = {KEPT: kept, **without_transport(store, ppr)}
    truth = read_truth(detection.stores[draw].parent)
    return {"seed": detection.seeds[draw], "seconds": seconds, **areas(store, ways, truth)}
