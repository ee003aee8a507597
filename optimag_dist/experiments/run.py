"""Runs an experiment: graphs, tuning, comparison, and the table of all fits.

    OUT/NAME/recipe.yaml                    the recipe with every key
    OUT/NAME/graphs/…                       stores, made once
    OUT/NAME/studies/STUDY/GRAPH/…          sweeps of Ray Tune: ``tuning`` and ``comparison``
    OUT/NAME/studies/STUDY/NNNN.json        a detection each
    OUT/NAME/results.parquet, report.html   a row per fit or detection; what came of it

Everything that has ended is kept: the same command goes on where it stopped.
"""

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.datasets import PlantedOptions, read_truth, write_planted
from optimag_dist.experiments.detect import Detection, run_detections
from optimag_dist.experiments.detection import KEPT, areas, without_transport
from optimag_dist.experiments.recipe import (
    ExperimentOptions,
    GraphOptions,
    Setting,
    StudyOptions,
    TuningOptions,
    arms_of,
    configure,
    for_tables,
    settings,
    source_of,
)
from optimag_dist.files import atomic
from optimag_dist.locks import sole_user
from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.ppr import PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ray_session import ensure_ray, translated_ray_errors
from optimag_dist.report.measure import decisive_figure
from optimag_dist.store import GraphStore, ingest, split_links
from optimag_dist.tasks import metric_of, monitor_of
from optimag_dist.train.log import read_records, read_result
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
class Place:
    """Where an experiment lives and reads.

    Attributes:
        directory: of the experiment.
        recipes: relative sources start here.
        address: of a Ray cluster, or None.
    """

    directory: Path
    recipes: Path
    address: str | None


@dataclass(frozen=True)
class Cell:
    """One arm in one setting: what is fitted with every seed."""

    setting: Setting
    arm: str
    changes: Mapping[str, Any]


def run_experiment(
    experiment: ExperimentOptions, out: Path, recipes: Path, *, address: str | None = None, say: Say = print
) -> Path:
    """Run what has not been run yet, and write ``results.parquet``.

    Args:
        experiment: see :func:`~optimag_dist.experiments.recipe.load_experiment`.
        out: folder in which the experiment's own lies.
        recipes: folder of the recipe, from which relative sources start.
        address: of a running Ray cluster; default: an embedded one.
        say: told what is done, a line at a time.

    Returns:
        The experiment's folder.

    Raises:
        InputError: a graph is not there or does not fit, or the folder holds another experiment.
        RunError: a fit has failed for good, or another process is at work on the experiment.
    """
    place = Place((out / experiment.name).absolute(), recipes.absolute(), address)
    go_on = "what has ended is kept: the same command goes on from there"
    with sole_user(place.directory, refuse_second), translated_ray_errors(str(place.directory), go_on):
        _run(experiment, place, say)
    return place.directory


def _run(experiment: ExperimentOptions, place: Place, say: Say) -> None:
    _claim(place.directory, experiment)
    rows: list[dict[str, Any]] = []
    for name, study in experiment.asked.items():
        say(f"{name}: {study.question}")
        run = _detect if study.detect else _compare
        rows += [{"study": name, **row} for row in run(experiment, name, study, place, say)]
        _write(place.directory / "results.parquet", rows)


def _claim(directory: Path, experiment: ExperimentOptions) -> None:
    recipe = directory / "recipe.yaml"
    if recipe.exists():
        known = load_options(ExperimentOptions, recipe)
        if known.model_copy(update={"only": experiment.only, "quick": experiment.quick}) != experiment:
            raise InputError(
                f"{directory}: holds the results of another recipe; choose another --out or name=…, or remove it"
            )
    dump_options(experiment, recipe)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    table = {c: _of_one_type([row.get(c) for row in rows]) for c in columns}
    with atomic(path) as temporary:
        pq.write_table(pa.table(table), temporary)


def _of_one_type(values: list[Any]) -> list[Any]:
    """What is varied may be a number in one study and a word in another."""
    kinds = {type(v) for v in values if v is not None}
    return [None if v is None else str(v) for v in values] if str in kinds and len(kinds) > 1 else values


# -- graphs ------------------------------------------------------------------------------------------------------------


def _planted_store(options: PlantedOptions, place: Place) -> Path:
    """The store of a made-up graph, whose tables lie beside it."""
    name = "-".join(f"{key}={_short(value)}" for key, value in options.model_dump(exclude_defaults=True).items())
    folder = place.directory / "graphs" / f"planted-{name}"
    if not (folder / "planted.yaml").exists():
        write_planted(folder, options)
    return _ingested(folder / "schema.yaml", folder / "store")


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _real_store(options: GraphOptions, source: Path, folder: Path) -> Path:
    if options.links is None:
        return _ingested(source, folder)
    if not folder.exists():
        whole = _ingested(source, folder.with_name(f"{folder.name}-whole"))
        split_links(GraphStore.open(whole), folder, options.links, say=lambda line: None)
    return folder


def _ingested(source: Path, store: Path) -> Path:
    if not store.exists():
        ingest(source, store, say=lambda line: None)
    return store


# -- studies that train ------------------------------------------------------------------------------------------------


def _compare(
    experiment: ExperimentOptions, name: str, study: StudyOptions, place: Place, say: Say
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # A sweep has one store, so one for each graph and each variation of a planted one.
    by_graph: dict[tuple[str, PlantedOptions | None], list[Setting]] = {}
    for setting in settings(experiment, study):
        by_graph.setdefault((setting.graph, setting.planted), []).append(setting)
    seeds = study.seeds or experiment.seeds
    for number, ((graph, planted), group) in enumerate(by_graph.items()):
        if planted is None:
            source = source_of(experiment.graphs[graph], place.recipes)
            if source is None:
                say(f"  {graph}: left out, {experiment.graphs[graph].source} is not there")
                continue
            store = _real_store(experiment.graphs[graph], source, place.directory / "graphs" / graph)
        else:
            store = _planted_store(planted, place)
        folder = place.directory / "studies" / name / (graph if planted is None else f"{graph}-{number:02d}")
        cells = [Cell(setting, arm, {}) for setting in group for arm in arms_of(experiment, study)]
        if study.tuning is not None:
            say(f"  {graph}: tuning, {study.tuning.trials} points for each of {len(cells)} cells")
            cells = _tuned(experiment, study, study.tuning, cells, store, folder, place)
        say(f"  {graph}: {len(cells)} cells of {len(seeds)} seeds")
        fits = _fit_cells(experiment, study, cells, seeds, store, folder / "comparison", place)
        judge = None if planted is None else _Judge(store)
        for cell, directories in zip(cells, fits, strict=True):
            chosen = {f"tuned/{key}": for_tables(value) for key, value in cell.changes.items()}
            for directory in directories:
                row = {"graph": graph, "arm": cell.arm, **_at(cell.setting), **_result(directory), **chosen}
                rows.append(row if judge is None else row | judge.baselines | judge.kept(directory))
    return rows


def _at(setting: Setting) -> dict[str, Any]:
    return {f"at/{key}": value for key, value in setting.at.items()}


def _result(directory: Path) -> dict[str, Any]:
    """A fit's result, or that it diverged, and the seconds it spent in training epochs."""
    result = read_result(directory) or {}
    seconds = sum(record["seconds"] for record in read_records(directory / "metrics.jsonl"))
    return {key: value for key, value in result.items() if key not in _NOT_FOR_TABLES} | {"seconds": seconds}


class _Judge:
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


def _tuned(
    experiment: ExperimentOptions,
    study: StudyOptions,
    tuning: TuningOptions,
    cells: Sequence[Cell],
    store: Path,
    folder: Path,
    place: Place,
) -> list[Cell]:
    """Every cell with the values that were best on validation."""
    tried = [Cell(cell.setting, cell.arm, point) for cell in cells for point in _points(tuning, cell.arm)]
    fits = _fit_cells(experiment, study, tried, tuning.seeds, store, folder / "tuning", place)
    means = [float(np.mean([_validation(_result(d)) for d in directories])) for directories in fits]
    found = []
    for i, cell in enumerate(cells):
        mine = slice(i * tuning.trials, (i + 1) * tuning.trials)
        best = int(np.argmax(means[mine]))
        found.append(Cell(cell.setting, cell.arm, tried[mine][best].changes))
    return found


def _validation(result: Mapping[str, Any]) -> float:
    """What a fit's early stopping went by; greater is better, and anything is better than to diverge."""
    if "diverged" in result:
        return -math.inf
    figure = decisive_figure(result)
    return metric_of(figure).sign * float(result[f"val/{figure}"])


def _points(tuning: TuningOptions, arm: str) -> list[dict[str, Any]]:
    """The arm as it stands, and what was drawn."""
    space = {**tuning.space, **tuning.arms.get(arm, {})}
    # Without a key every point is the arm as it stands.
    return [{}, *random_points(space, tuning.trials - 1, _TUNING_SEED)]


def _fit_cells(
    experiment: ExperimentOptions,
    study: StudyOptions,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    store: Path,
    directory: Path,
    place: Place,
) -> list[list[Path]]:
    """Fit every cell with every seed, as trials of one sweep; the fits' directories, cell by cell."""
    configured = [configure(experiment, study, c.setting, c.arm, c.changes) for c in cells]
    configs = [config.model_dump(mode="json") for config in configured]
    figures = {monitor_of(config.task) for config in configured}
    # An arm may have any name, a variant may not.
    names = [f"{re.sub(r'[^A-Za-z0-9+_.-]', '_', cell.arm)}-{i:04d}" for i, cell in enumerate(cells)]
    variants = dict(zip(names, configs, strict=True))
    run = validate_options(
        RunConfig,
        {
            **configs[0],
            "name": directory.name,
            "store": store,
            "out": directory.parent,
            "seeds": tuple(seeds),
            "variants": variants,
        },
        source=str(directory),
    )
    sweep = SweepOptions(
        space={VARIANT: Distribution.model_validate({"grid": list(variants)})},
        search={"method": "grid"},
        # All cells are wanted, whichever is the best; of different tasks time alone can be told of all.
        metrics=metrics_of(figures.pop()) if len(figures) == 1 else {"seconds": "min"},
    )
    fits = [[trial_directory(run, f"{i:03d}") / f"seed-{seed}" for seed in seeds] for i in range(len(cells))]
    if all(read_result(fit) is not None for trial in fits for fit in trial):
        return fits
    # Tune would not repeat a trial that it knows to have ended, whatever is left of it; fits know that themselves.
    shutil.rmtree(directory / "tune", ignore_errors=True)
    rows = run_sweep(run, sweep, resume=(directory / "space.yaml").exists(), address=place.address)
    failed = [row for row in rows if row.status not in ("finished", "diverged")]
    if failed:
        raise RunError(
            f"{directory}: trial {failed[0].trial} {failed[0].status}: {failed[0].error}; run it again to go on"
        )
    return fits


# -- studies that do not train -----------------------------------------------------------------------------------------


def _detect(
    experiment: ExperimentOptions, name: str, study: StudyOptions, place: Place, say: Say
) -> list[dict[str, Any]]:
    """A row per setting, arm and seed; the seed is the graph's too, so that every one is another draw."""
    ensure_ray(place.address)
    seeds = study.seeds or experiment.seeds
    asked: list[Detection] = []
    labels: list[dict[str, Any]] = []
    for setting in settings(experiment, study):
        assert setting.planted is not None
        stores = [_planted_store(setting.planted.model_copy(update={"seed": seed}), place) for seed in seeds]
        for arm in arms_of(experiment, study):
            config = configure(experiment, study, setting, arm)
            labels.append({"graph": setting.graph, "arm": arm, **_at(setting)})
            priors = [Path(compute_ppr(GraphStore.open(store), config.ppr).path) for store in stores]
            asked.append(Detection(tuple(stores), tuple(priors), config, tuple(seeds)))
    say(f"  {len(asked)} cells of {len(seeds)} graphs")
    answers = run_detections(asked, place.directory / "studies" / name, say)
    return [{**label, **row} for label, rows in zip(labels, answers, strict=True) for row in rows]
