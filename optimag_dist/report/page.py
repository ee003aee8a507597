"""The report: one HTML file that needs no other file, no network and no script."""

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from optimag_dist.report import figures
from optimag_dist.report.comparison import compare
from optimag_dist.report.html import write_page
from optimag_dist.report.kept_mass import Gallery, check_store, gallery, read_kept_mass
from optimag_dist.report.measure import show
from optimag_dist.report.outputs import read_samples
from optimag_dist.report.run import Run, read_run
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassificationOptions, TaskOptions, make_task, named
from optimag_dist.types import InputError

_NUMBER = re.compile(r"\d[\d.,]*")
_FIT_FILES = {
    "model.pt": "weights of the best epoch",
    "checkpoint.pt": "state to resume from",
    "kept_mass.parquet": "kept mass of every node; NaN where it lacks the modality or has no neighbour to be judged by",
    "outputs*.parquet": "what was generated for the test nodes, beside the references",
    "metrics.jsonl": "numbers of every epoch",
    "result.json": "final metrics",
    "tensorboard": "numbers of every epoch, for TensorBoard",
}


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` of the run in ``run_dir``, which may be unfinished, and return the file."""
    run = read_run(Path(run_dir))
    colours = figures.variant_colours(list(run.variants))
    masses = read_kept_mass(run)
    galleries: list[Gallery] = []
    # A store that is gone costs the report its nodes, not the numbers.
    trouble = None
    graph = {"Graph": f"{run.config.store} (the store cannot be opened)"}
    try:
        store = GraphStore.open(run.config.store)
        graph = _graph_facts(run, store)
        if masses:
            check_store(store, run)
            galleries = [gallery(mass, store) for mass in masses]
    except InputError as error:
        trouble = str(error)
    return write_page(
        run.directory / "report.html",
        "run.html.j2",
        run=run,
        facts=graph | _training_facts(run),
        table=compare(run),
        advice=_advice(run),
        colours=colours,
        learning=figures.learning_curves(run, colours),
        samples=read_samples(run),
        regulariser=figures.regulariser_curves(run, colours),
        regularised=[name for name, variant in run.variants.items() if variant.regulariser.active],
        histograms=figures.kept_mass_histograms(masses, colours),
        galleries=galleries,
        unjudged=max((mass.unjudged for mass in masses), default=0),
        trouble=trouble,
        random_split=any(getattr(task, "split", "stored") != "stored" for task in _tasks(run)),
        config=_yaml(run.config),
        variant_configs={name: _yaml(variant) for name, variant in run.variants.items()},
        files=[(fit, [p.name for name in _FIT_FILES for p in sorted(fit.directory.glob(name))]) for fit in run.fits],
        file_meanings=_FIT_FILES,
        show=show,
    )


def _graph_facts(run: Run, store: GraphStore) -> dict[str, str]:
    facts = {
        "Graph": store.name,
        "Nodes": f"{store.num_nodes:,}",
        "Edges": f"{store.num_arcs:,} directed" if store.directed else f"{store.num_arcs // 2:,}",
        "Modalities": ", ".join(
            f"{m.name} ({m.width} numbers{_missing(store, m.name)})" for m in store.modalities.values()
        ),
    }
    options = next((task for task in _tasks(run) if isinstance(task, NodeClassificationOptions)), None)
    if options is None:
        return facts
    facts["Classes"] = f"{len(store.classes)}"
    try:
        task: Any = make_task(options, store, seed=run.config.seeds[0])
    except InputError:  # the store has changed so much that the task is gone: no sizes to show
        return facts
    facts["Split"] = f"{len(task.train):,} train, {len(task.val):,} validation, {len(task.test):,} test"
    facts["Split"] += ", the store's own" if options.split == "stored" else ", drawn anew for every seed"
    return facts


def _tasks(run: Run) -> list[TaskOptions]:
    return list(dict.fromkeys(task for variant in run.variants.values() for task in named(variant.task).values()))


def _missing(store: GraphStore, modality: str) -> str:
    absent = store.num_nodes - int(np.count_nonzero(store.present(modality)))
    return f", missing in {absent:,} node{'s' * (absent > 1)}" if absent else ""


def _training_facts(run: Run) -> dict[str, str]:
    ended = max((fit.directory / "result.json").stat().st_mtime for fit in run.finished)
    workers = run.config.workers
    return {
        "Task": ", ".join(dict.fromkeys(task.kind.replace("_", " ") for task in _tasks(run))),
        "Seeds": ", ".join(map(str, run.config.seeds)),
        "Trained": f"{datetime.fromtimestamp(ended, timezone.utc):%Y-%m-%d %H:%M} UTC, workers: {workers.count}",
    }


def _advice(run: Run) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Variant → what its fits' results advise, with the seeds. Of sentences that differ in their numbers the first."""
    told: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for variant in run.variants:
        alike: dict[str, tuple[str, list[int]]] = {}
        for fit in run.of(variant):
            for line in filter(None, (fit.result or {}).get("advice", "").split("\n")):
                alike.setdefault(_NUMBER.sub("", line), (line, []))[1].append(fit.seed)
        if alike:
            told[variant] = [(line, tuple(seeds)) for line, seeds in alike.values()]
    return told


def _yaml(options: Any) -> str:
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
