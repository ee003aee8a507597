"""Runs an experiment: graphs, tuning, comparison, and the table of all fits.

    OUT/NAME/recipe.yaml                    the recipe with every key
    OUT/NAME/graphs/…                       stores, made once
    OUT/NAME/studies/STUDY/GRAPH/…          sweeps of Ray Tune: ``tuning`` and ``comparison``
    OUT/NAME/studies/STUDY/NNNN.json        a detection each
    OUT/NAME/results.parquet, report.html   a row per fit or detection; what came of it

Everything that has ended is kept: the same command goes on where it stopped.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from optimag_dist.datasets import PlantedOptions, read_truth, write_planted
from optimag_dist.experiments import recipe
from optimag_dist.experiments.detection import KEPT, Detection, areas, run_detections, without_transport
from optimag_dist.experiments.recipe import ExperimentOptions, GraphOptions, Setting, StudyOptions, TuningOptions
from optimag_dist.locks import sole_user
from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.ppr import PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ray_session import ensure_ray, translated_ray_errors
from optimag_dist.report.measure import monitored
from optimag_dist.store import GraphStore, ingest, split_links
from optimag_dist.tasks import make_task, metric_of, monitor_of, named
from optimag_dist.train.log import read_records, read_result, write_rows
from optimag_dist.train.options import RunConfig
from optimag_dist.train.validation import refuse_second
from optimag_dist.tune.options import VARIANT, Distribution, SweepOptions, metrics_of
from optimag_dist.tune.space import random_points
from optimag_dist.tune.sweep import run_sweep
from optimag_dist.tune.trial import trial_directory
from optimag_dist.types import InputError, RunError

Say = Callable[[str], None]
# Of a fit's result.
_NOT_FOR_TABLES = ("variant", "advice", "fingerprint", "store")
# Of the points that tuning draws: the same for every arm.
_TUNING_SEED = 7


@dataclass(frozen=True)
class Asked:
    """One study of an experiment; see :func:`run_experiment`."""

    experiment: ExperimentOptions
    name: str
    directory: Path
    recipes: Path
    address: str | None
    say: Say

    @property
    def study(self) -> StudyOptions:
        return self.experiment.studies[self.name]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.study.seeds or self.experiment.seeds


@dataclass(frozen=True)
class Cell:
    """One arm in one setting: what is fitted with every seed."""

    setting: Setting
    arm: str
    changes: Mapping[str, Any]


def run_experiment(
    experiment: ExperimentOptions, out: Path, recipes: Path, *, address: str | None = None, say: Say = print
) -> Path:
    """Run what has not been run yet, write ``results.parquet``, and return the experiment's folder, in ``out``.

    Args:
        recipes: folder of the recipe, from which relative sources start.
        address: of a running Ray cluster; default: an embedded one.
        say: told what is done, a line at a time.

    Raises:
        InputError: a graph is not there or does not fit, or the folder holds another experiment.
        RunError: a fit has failed for good, or another process is at work on the experiment.
    """
    directory = (out / experiment.name).absolute()
    go_on = "what has ended is kept: the same command goes on from there"
    with sole_user(directory, refuse_second), translated_ray_errors(str(directory), go_on):
        file = directory / "recipe.yaml"
        if file.exists():
            known = load_options(ExperimentOptions, file)
            if known.model_copy(update={"only": experiment.only, "quick": experiment.quick}) != experiment:
                raise InputError(
                    f"{directory}: holds the results of another recipe; choose another --out or name=…, or remove it"
                )
        dump_options(experiment, file)
        if experiment.data is not None:
            datasets, others = recipe.datasets_in(experiment.data)
            say(f"{experiment.data}: {', '.join(datasets)}")
            if others:
                say(f"  left out, of no known layout: {', '.join(each.name for each in others)}")
        rows: list[dict[str, Any]] = []
        for name, study in experiment.asked.items():
            say(f"{name}: {study.question}")
            run = _detect if study.detect else _compare
            asked = Asked(experiment, name, directory, recipes.absolute(), address, say)
            rows += [{"study": name, **row} for row in run(asked)]
            write_rows(directory / "results.parquet", rows)
    return directory


# -- graphs ------------------------------------------------------------------------------------------------------------


def _planted_store(options: PlantedOptions, directory: Path) -> Path:
    """The store of a synthetic graph, whose tables lie beside it."""
    changed = options.model_dump(exclude_defaults=True).items()
    name = "-".join(f"{key}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in changed)
    folder = directory / "graphs" / f"planted-{name}"
    if not (folder / "planted.yaml").exists():
        write_planted(folder, options)
    return _ingested(folder / "schema.yaml", folder / "store")


def _real_store(options: GraphOptions, source: Path, folder: Path, encoder: str | tuple[str, ...] | None) -> Path:
    # Only folders have the features of several encoders, and a schema has no such key.
    overrides = [f"encoder={json.dumps(encoder)}"] if encoder and source.is_dir() else []
    if options.links is None:
        return _ingested(source, folder, overrides)
    if not folder.exists():
        whole = _ingested(source, folder.with_name(f"{folder.name}-whole"), overrides)
        split_links(GraphStore.open(whole), folder, options.links, say=lambda line: None)
    return folder


def _ingested(source: Path, store: Path, overrides: Sequence[str] = ()) -> Path:
    if not store.exists():
        ingest(source, store, list(overrides), say=lambda line: None)
    return store


def _lack(store: Path, cells: Sequence[Cell], asked: Asked) -> str | None:
    """What the graph lacks for the cells' tasks, in words; None where it has everything."""
    tasks = [recipe.configure(asked.experiment, asked.study, cell.setting, cell.arm).task for cell in cells]
    try:
        # Arms and backbones ask the same.
        for task in {task.model_dump_json(): task for task in tasks}.values():
            for options in named(task).values():
                make_task(options, GraphStore.open(store), seed=asked.seeds[0])
    except InputError as error:
        return str(error)
    return None


# -- studies that train ------------------------------------------------------------------------------------------------


def _compare(asked: Asked) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # A sweep has one store, so one for each graph and each variation of a planted one.
    by_graph: dict[tuple[str, PlantedOptions | None], list[Setting]] = {}
    for setting in recipe.settings(asked.experiment, asked.study):
        by_graph.setdefault((setting.graph, setting.planted), []).append(setting)
    for number, ((graph, planted), group) in enumerate(by_graph.items()):
        folder = asked.directory / "studies" / asked.name / (graph if planted is None else f"{graph}-{number:02d}")
        if planted is None:
            options = asked.experiment.graphs[graph]
            source = recipe.source_of(options, asked.recipes)
            if source is None:
                asked.say(f"  {graph}: left out, {options.source} is not there")
                continue
            store = _real_store(options, source, asked.directory / "graphs" / graph, asked.experiment.encoder)
        else:
            store = _planted_store(planted, asked.directory)
        cells = [Cell(setting, arm, {}) for setting in group for arm in recipe.arms_of(asked.experiment, asked.study)]
        if planted is None and options.optional and (lack := _lack(store, cells, asked)):
            asked.say(f"  {graph}: left out, {lack}")
            continue
        if asked.study.tuning is not None:
            asked.say(f"  {graph}: tuning, {asked.study.tuning.trials} points for each of {len(cells)} cells")
            cells = _tuned(asked, asked.study.tuning, cells, store, folder / "tuning")
        asked.say(f"  {graph}: {len(cells)} cells of {len(asked.seeds)} seeds")
        fits = _fit_cells(asked, cells, asked.seeds, store, folder / "comparison")
        areas_of = None if planted is None else _Areas(store)
        for cell, directories in zip(cells, fits, strict=True):
            chosen = {f"tuned/{key}": recipe.for_tables(value) for key, value in cell.changes.items()}
            for directory in directories:
                row = {"graph": graph, "arm": cell.arm, **_at(cell.setting), **_result(directory), **chosen}
                rows.append(row if areas_of is None else row | areas_of.baselines | areas_of.kept(directory))
    return rows


def _at(setting: Setting) -> dict[str, Any]:
    return {f"at/{key}": value for key, value in setting.at.items()}


def _result(directory: Path) -> dict[str, Any]:
    """A fit's result, or that it diverged, and the seconds it spent in training epochs."""
    result = read_result(directory) or {}
    seconds = sum(record["seconds"] for record in read_records(directory / "metrics.jsonl"))
    return {key: value for key, value in result.items() if key not in _NOT_FOR_TABLES} | {"seconds": seconds}


class _Areas:
    """Areas under the curve on one planted graph; ``baselines`` are those of the ways that need no transport."""

    def __init__(self, store: Path) -> None:
        self._store, self._truth = GraphStore.open(store), read_truth(store.parent)
        ways = without_transport(self._store, compute_ppr(self._store, PPROptions()))
        self.baselines = areas(self._store, ways, self._truth)

    def kept(self, fit: Path) -> dict[str, float]:
        """Of the mass that a fit's embeddings keep, where it was exported."""
        file = fit / "kept_mass.parquet"
        if not file.exists():
            return {}
        table = pq.read_table(file)
        kept = {m: table[m].to_numpy() for m in self._store.modalities}
        return areas(self._store, {KEPT: kept}, self._truth)


def _tuned(asked: Asked, tuning: TuningOptions, cells: Sequence[Cell], store: Path, directory: Path) -> list[Cell]:
    """Every cell with the values that were best on validation: of the arm as it stands, and what was drawn."""
    tried = []
    for cell in cells:
        space = {**tuning.space, **tuning.arms.get(cell.arm, {})}
        points = [{}, *random_points(space, tuning.trials - 1, _TUNING_SEED)]
        tried += [Cell(cell.setting, cell.arm, point) for point in points]
    fits = _fit_cells(asked, tried, tuning.seeds, store, directory)
    means = [float(np.mean([_validation(_result(d)) for d in directories])) for directories in fits]
    best = np.argmax(np.reshape(means, (len(cells), -1)), axis=1)
    return [tried[i * tuning.trials + int(place)] for i, place in enumerate(best)]


def _validation(result: Mapping[str, Any]) -> float:
    """What a fit's early stopping went by; greater is better, and anything is better than to diverge."""
    if "diverged" in result:
        return -math.inf
    column = monitored(result)
    return metric_of(column).sign * float(result[column])


def _fit_cells(
    asked: Asked, cells: Sequence[Cell], seeds: Sequence[int], store: Path, directory: Path
) -> list[list[Path]]:
    """Fit every cell with every seed, as trials of one sweep; the fits' directories, cell by cell."""
    configured = [recipe.configure(asked.experiment, asked.study, c.setting, c.arm, c.changes) for c in cells]
    configs = [config.model_dump(mode="json") for config in configured]
    monitors = {monitor_of(config.task) for config in configured}
    # An arm may have any name, a variant may not.
    names = [f"{re.sub(r'[^A-Za-z0-9+_.-]', '_', cell.arm)}-{i:04d}" for i, cell in enumerate(cells)]
    variants = dict(zip(names, configs, strict=True))
    places = {"name": directory.name, "store": store, "out": directory.parent}
    run = validate_options(
        RunConfig, {**configs[0], **places, "seeds": tuple(seeds), "variants": variants}, source=str(directory)
    )
    sweep = SweepOptions(
        space={VARIANT: Distribution.model_validate({"grid": list(variants)})},
        search={"method": "grid"},
        # All cells are wanted, whichever is the best; of different tasks time alone can be told of all.
        metrics=metrics_of(monitors.pop()) if len(monitors) == 1 else {"seconds": "min"},
    )
    fits = [[trial_directory(run, f"{i:03d}") / f"seed-{seed}" for seed in seeds] for i in range(len(cells))]
    if all(read_result(fit) is not None for trial in fits for fit in trial):
        return fits
    # Tune would not repeat a trial that it knows to have ended, whatever is left of it; fits know that themselves.
    shutil.rmtree(directory / "tune", ignore_errors=True)
    rows = run_sweep(run, sweep, resume=(directory / "space.yaml").exists(), address=asked.address)
    failed = [row for row in rows if row.status not in ("finished", "diverged")]
    if failed:
        raise RunError(
            f"{directory}: trial {failed[0].trial} {failed[0].status}: {failed[0].error}; run it again to go on"
        )
    return fits


# -- studies that do not train -----------------------------------------------------------------------------------------


def _detect(asked: Asked) -> list[dict[str, Any]]:
    """A row per setting, arm and seed; the seed is the graph's too, so that every one is another draw."""
    ensure_ray(asked.address)
    detections: list[Detection] = []
    labels: list[dict[str, Any]] = []
    for setting in recipe.settings(asked.experiment, asked.study):
        assert setting.planted is not None
        graphs = [setting.planted.model_copy(update={"seed": seed}) for seed in asked.seeds]
        stores = [_planted_store(graph, asked.directory) for graph in graphs]
        for arm in recipe.arms_of(asked.experiment, asked.study):
            config = recipe.configure(asked.experiment, asked.study, setting, arm)
            labels.append({"graph": setting.graph, "arm": arm, **_at(setting)})
            priors = [Path(compute_ppr(GraphStore.open(store), config.ppr).path) for store in stores]
            detections.append(Detection(tuple(stores), tuple(priors), config, asked.seeds))
    asked.say(f"  {len(detections)} cells of {len(asked.seeds)} graphs")
    answers = run_detections(detections, asked.directory / "studies" / asked.name, asked.say)
    return [{**label, **row} for label, rows in zip(labels, answers, strict=True) for row in rows]
