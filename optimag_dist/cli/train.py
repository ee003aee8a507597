"""Commands that train: ``optimag train``, ``tune``, ``experiment`` and ``demo``."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimag_dist.cli.arguments import Address, Overrides, path
from optimag_dist.cli.results import show_report
from optimag_dist.console import console, fail, say

if TYPE_CHECKING:
    from optimag_dist.train.options import RunConfig

# Of the demo: share of nodes whose text or picture is another's, and how often they are drawn.
_PLANTED, _DRAWS = 0.2, 3


def train(
    config: Annotated[Path, typer.Argument(parser=path, help="YAML file of a run.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run directory that is there.")] = False,
    resume_if_there: Annotated[bool, typer.Option("--resume-if-there", help="The same, or start the run.")] = False,
    address: Address = None,
) -> None:
    """Train every variant and seed of a run on Ray workers, and report."""
    from optimag_dist.options import load_options
    from optimag_dist.storage import is_file
    from optimag_dist.train.options import RunConfig

    again = " ".join(["optimag train", str(config), *(overrides or []), "--resume"])
    loaded = load_options(RunConfig, config, overrides or [])
    resume = resume or (resume_if_there and is_file(loaded.location / "config.yaml"))
    _train(loaded, resume=resume, address=address, again=again)


def tune(
    config: Annotated[Path, typer.Argument(parser=path, help="YAML file of a run.")],
    space: Annotated[
        Path, typer.Argument(parser=path, metavar="SPACE.yaml", help="What is searched, how, and by which metrics.")
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the sweep that is there.")] = False,
    resume_if_there: Annotated[bool, typer.Option("--resume-if-there", help="The same, or start the sweep.")] = False,
    address: Address = None,
) -> None:
    """Search hyperparameters: trials of several workers each, all on one store and its PPR."""
    from optimag_dist.tune.options import load_sweep
    from optimag_dist.tune.results import ENDED, best, pareto_front, ranked
    from optimag_dist.tune.space import num_trials
    from optimag_dist.tune.sweep import run_sweep
    from optimag_dist.tune.view import trials_table

    run, options = load_sweep(config, space, overrides or [])
    resume = resume or (resume_if_there and (run.directory / "space.yaml").exists())
    words = ["optimag", "tune", str(config), str(space), *(overrides or []), "--resume"]
    again = shlex.join([*words, *(["--address", address] if address else [])])
    try:
        rows = run_sweep(run, options, resume=resume, address=address)
    except KeyboardInterrupt:
        found = run.directory / "best"
        so_far = f"the best so far is in {found}" if found.is_dir() else "no trial has finished yet"
        kept = f"trials and checkpoints are kept in {run.directory}"
        fail(f"interrupted; {kept}; {so_far}; go on with: {again}", 130)
    front = pareto_front(rows, options) if len(options.metrics) > 1 else None
    console().print(trials_table(ranked(rows, options), options, front))
    show_report(run.directory)
    say(f"trials:      {run.directory / 'trials.parquet'}")
    if diverged := [row.trial for row in rows if row.status == "diverged"]:
        say(f"diverged:    {', '.join(diverged)}; they are in no comparison")
    ended, planned = sum(row.status in ENDED for row in rows), num_trials(options)
    if ended < planned:
        say(f"over time:   {ended} of {planned} trials have ended; go on with: {again}")
    winner = best(rows, options)
    if winner is None:
        over = f"search.time_budget_s={options.search.time_budget_s} is over"
        reason = next((row.error for row in rows if row.error), over if ended < planned else "all were stopped")
        fail(f"no trial has finished: {reason}", 1)
    say(f"best:        {winner.trial}; train it again with: optimag train {run.directory / 'best' / 'config.yaml'}")


def experiment(
    name: Annotated[str, typer.Argument(help="A recipe of jobs/experiments, such as conflicts; or a YAML file.")],
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look in a few minutes.")] = False,
    out: Annotated[
        Path, typer.Option(parser=path, help="Folder for the results; one that is there is gone on with.")
    ] = Path("runs/experiments"),
    address: Address = None,
) -> None:
    """Repeat an experiment: fits over seeds as Ray Tune sweeps, results in Parquet, a report with plots."""
    from optimag_dist.experiments.recipe import find_recipe, load_experiment
    from optimag_dist.experiments.report import write_experiment_report
    from optimag_dist.experiments.run import run_experiment

    recipe = find_recipe(name)
    options = load_experiment(recipe, overrides or [], quick=quick)
    out = out / "quick" if quick else out
    try:
        directory = run_experiment(options, out, recipe.parent, address=address, say=say)
    except KeyboardInterrupt:
        fail(f"interrupted; what has ended is kept in {out / options.name}; the same command goes on from there", 130)
    file = write_experiment_report(directory, console())
    say(f"report:      {file}")
    say(f"results:     {directory / 'results.parquet'}")


def demo(
    out: Annotated[Path, typer.Option(parser=path, help="Where the store and the runs go.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(parser=path, help="Run directory of a demo that was interrupted.")
    ] = None,
) -> None:
    """On the openmoji graph, with and without the regulariser: classify, retrieve, and find planted conflicts."""
    from optimag_dist.datasets import dataset_schema
    from optimag_dist.options import load_options
    from optimag_dist.store import ingest
    from optimag_dist.train.options import RunConfig

    if resume is not None:
        config, again = load_options(RunConfig, resume / "config.yaml"), f"optimag demo --resume {resume}"
    else:
        schema = dataset_schema("openmoji")
        store = ingest(schema, out / "stores" / "openmoji")
        say(store.summary())
        name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
        overrides = [f"name={name}", f"store={store.path}", f"out={out}"]
        config = load_options(RunConfig, schema.parent / "demo.yaml", overrides)
        again = f"optimag demo --resume {config.directory}"
    _train(config, resume=resume is not None, address=None, again=again)
    _find_planted(config)


def _find_planted(config: "RunConfig") -> None:
    """Plant conflicts in the run's graph, and print how well kept mass finds them."""
    from optimag_dist.experiments.swapped import areas_of_swapped, render_swapped
    from optimag_dist.ppr.driver import compute_ppr
    from optimag_dist.store import GraphStore

    store = GraphStore.open(config.store)
    variant = next(each for each in config.resolve().values() if each.regulariser.active)
    rows = areas_of_swapped(store, compute_ppr(store, variant.ppr), variant, share=_PLANTED, seeds=range(_DRAWS))
    say(f"\nPlanted conflicts: in {_PLANTED:.0%} of the nodes, text or picture is that of another group's node.")
    render_swapped(rows, list(store.modalities), console())


def _train(config: "RunConfig", *, resume: bool, address: str | None, again: str) -> None:
    from optimag_dist.storage import file_sizes
    from optimag_dist.train.launch import launch
    from optimag_dist.types import Diverged, InputError

    lost = ""
    try:
        launch(config, resume=resume, address=address)
    except Diverged as error:
        lost = str(error)
    except KeyboardInterrupt:
        kept = f"finished fits and checkpoints are kept in {config.location}"
        fail(f"interrupted; {kept}; go on with: {again}", 130)
    run = config.location
    try:
        show_report(run)
    except InputError:
        # Nothing to report where all have diverged.
        if not lost:
            raise
    models = ", ".join(
        sorted({str(run / n.split("/")[0]) for n in file_sizes(run, below=True) if n.endswith("/model.pt")})
    )
    if models:
        say(f"checkpoints: seed-*/model.pt in {models}")
    if lost:
        fail(lost, 1)
