"""The ``optimag`` command: thin commands over the packages.

Every command imports what it needs itself: torch, DGL and Ray take seconds that ``optimag --help`` need not wait for.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.table import Table
from typer.core import TyperGroup

from optimag_dist.console import console, end, fail, nobody_listens, say, unfailing_output

if TYPE_CHECKING:
    from optimag_dist.inference.options import EmbedOptions, PredictOptions
    from optimag_dist.storage import AnyPath
    from optimag_dist.submit.cluster import Jobs
    from optimag_dist.train.options import RunConfig

app = typer.Typer(
    help="OptiMAG for large multimodal attributed graphs: ingest, PPR, distributed training, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _DefaultCommand(TyperGroup):
    """``optimag ppr STORE`` means ``optimag ppr compute STORE``."""

    default: str

    def spelt_out(self, args: list[str]) -> list[str]:
        """``args`` with the command they mean in front."""
        return args if args and args[0] in {*self.commands, "--help"} else [self.default, *args]

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, self.spelt_out(args) if args else args)


class _Compute(_DefaultCommand):
    default = "compute"


class _Run(_DefaultCommand):
    default = "run"


data_app = typer.Typer(help="Real graphs that come with the package.", no_args_is_help=True)
app.add_typer(data_app, name="data")
ppr_app = typer.Typer(
    cls=_Compute,
    help="Personalised PageRank of every node: optimag ppr STORE [KEY=VALUE]... computes it.",
    no_args_is_help=True,
)
app.add_typer(ppr_app, name="ppr")
submit_app = typer.Typer(
    cls=_Run,
    help="Jobs of several commands: optimag submit JOB.yaml [KEY=VALUE]... runs one, here or on a Ray cluster.",
    no_args_is_help=True,
)
app.add_typer(submit_app, name="submit")
# click's own error, whichever click this typer comes with.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def path(given: str | Path) -> Path:
    """A path on this machine, as an argument of a command."""
    if not str(given) or "://" in str(given):
        raise typer.BadParameter(f"{str(given)!r}: needed a path on this machine")
    return Path(given).expanduser()


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the configuration.")]
Store = Annotated[str, typer.Argument(help="Directory or URI of a graph store.")]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; default: an embedded one.")]


def main() -> None:
    """Entry point: what a user or a machine can cause is told in one message, without a traceback."""
    with unfailing_output():
        try:
            for argument in sys.argv[1:]:
                argument.encode()
            _check_directory()
            _ensure_home()
            app()
        except Exception as error:
            end(_without_ray(error))


def _check_directory() -> None:
    """Before torch is imported, which ends the process where there is none."""
    try:
        Path.cwd()
    except FileNotFoundError:
        fail("the working directory has been removed; go to another one", 2)


def _ensure_home() -> None:
    """A user who is only a number, as in containers, may have none, and the libraries do not take that for possible."""
    try:
        Path.home()
    except RuntimeError:
        from optimag_dist.private_folder import private_folder

        os.environ["HOME"] = str(private_folder(below=0))


def _without_ray(error: Exception) -> BaseException:
    """``error``; what it comes to where it is one of Ray's."""
    if "ray.exceptions" not in sys.modules:
        return error
    from optimag_dist.ray_session import explained

    return explained(error) or error


@app.command()
def doctor() -> None:
    """Check this machine: versions, devices, memory, backends, and what to do about anything wrong."""
    from optimag_dist.doctor import as_table, diagnose, healthy

    findings = diagnose()
    console().print(as_table(findings))
    if not healthy(findings):
        raise typer.Exit(1)


@data_app.command("list")
def data_list() -> None:
    """Show the graphs that come with the package."""
    from optimag_dist.datasets import list_datasets

    table = Table("name", "nodes", "edges", "modalities", "classes", "licence", "description")
    for info in list_datasets():
        modalities = ", ".join(f"{name} {width}" for name, width in info.modalities.items())
        table.add_row(
            info.name,
            f"{info.nodes:,}",
            f"{info.edges:,}",
            modalities,
            str(len(info.classes)),
            info.licence,
            info.description,
        )
    console().print(table)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A name from: optimag data list")],
    out: Annotated[Path | None, typer.Option(parser=path, help="Directory to make; default: data/NAME.")] = None,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Leave a directory that is there as it is.")] = False,
) -> None:
    """Copy a graph's tables and its schema into a directory, ready for ``optimag ingest``."""
    from optimag_dist.datasets import copy_dataset

    target = out or Path("data") / name
    if not (if_missing and target.exists()):
        target = copy_dataset(name, target)
    say(f"{target}\nnext: optimag ingest {target}/schema.yaml stores/{name}")


@data_app.command("make")
def data_make(
    out: Annotated[Path, typer.Argument(parser=path, help="Directory to make.")],
    overrides: Overrides = None,
) -> None:
    """Make up a graph with known conflicts between modalities and graph.

    Keys: nodes, classes, degree, exponent, homophily, modalities, width, noise, conflicts, missing, seed.
    """
    from optimag_dist.datasets import PlantedOptions, write_planted
    from optimag_dist.options import parse_options

    target = write_planted(out, parse_options(PlantedOptions, overrides, "optimag data make"))
    say(f"{target}\nnext: optimag ingest {target}/schema.yaml stores/{target.name}")


@app.command("ingest")
def ingest_command(
    source: Annotated[
        Path,
        typer.Argument(parser=path, help="YAML file that describes tables, or npz, DGL, PyG, OGB, MAGB, MM-Graph."),
    ],
    store: Annotated[str, typer.Argument(help="Directory or URI of the graph store to make.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a store with other content.")] = False,
) -> None:
    """Read a graph from tables or another layout into a memory-mapped graph store."""
    from optimag_dist.storage import located
    from optimag_dist.store import ingest

    made = ingest(source, store, overrides or [], overwrite=overwrite)
    say(made.summary())
    say(f"next: optimag ppr {located(store)}")


@app.command("partition")
def partition_command(
    store: Annotated[Path, typer.Argument(parser=path, help="Directory of a graph store.")],
    overrides: Overrides = None,
) -> None:
    """Divide a store into self-contained shards (keys: parts, method, seed, features)."""
    from optimag_dist.options import parse_options
    from optimag_dist.store import GraphStore, PartitionOptions, partition_store
    from optimag_dist.store.partition import as_table

    options = parse_options(PartitionOptions, overrides, "optimag partition")
    partition = partition_store(GraphStore.open(store), options)
    console().print(as_table(partition.meta))
    say(f"{partition.path}\nnext: optimag ppr {store} placement=sharded")


@app.command("split")
def split_command(
    store: Store,
    out: Annotated[str, typer.Argument(help="Directory or URI of the split store to make.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a store with other content.")] = False,
) -> None:
    """Hold edges out of an undirected store, to be predicted as links (keys: val, test, negatives, seed)."""
    from optimag_dist.options import parse_options
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore, LinkSplitOptions, split_links

    options = parse_options(LinkSplitOptions, overrides, "optimag split")
    made = split_links(GraphStore.open(store), out, options, overwrite=overwrite, say=say)
    say(f"{made.summary()}\nnext: optimag ppr {located(out)}")


@ppr_app.command("compute")
def ppr_compute(
    store: Store,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Compute every node's top-k personalised PageRank into the store.

    Keys: teleport, eps, k, block_size, placement, partition, actors, row_cache_mb, in_flight_mb.
    """
    from optimag_dist.options import parse_options
    from optimag_dist.ppr import PPROptions
    from optimag_dist.ppr.driver import RunTotals, compute_ppr
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.store import GraphStore

    options = parse_options(PPROptions, overrides, "optimag ppr")
    opened = GraphStore.open(store)
    ensure_ray(address)
    totals = RunTotals()
    artefact = compute_ppr(opened, options, totals=totals)
    if totals.blocks:
        say(totals.line())
    say(str(artefact.location))


@ppr_app.command("inspect")
def ppr_inspect(
    artefact: Annotated[
        Path, typer.Argument(parser=path, help="Directory of a PPR artefact, as optimag ppr prints it.")
    ],
    node: Annotated[str | None, typer.Option(help="Your id of a node whose row is shown; needs --store.")] = None,
    store: Annotated[Path | None, typer.Option(parser=path, help="The graph store the artefact belongs to.")] = None,
) -> None:
    """Check an artefact's numbers, say how good they are, and show a node's row."""
    from optimag_dist.ppr import PPRArtefact
    from optimag_dist.ppr.inspect import row_table, summary_table
    from optimag_dist.store import GraphStore
    from optimag_dist.types import InputError

    if (node is None) != (store is None):
        raise InputError("optimag ppr inspect: --node and --store go together: the store knows the nodes' ids")
    opened = PPRArtefact.open(artefact)
    opened.verify()
    console().print(summary_table(opened))
    if node is not None and store is not None:
        console().print(row_table(opened, GraphStore.open(store), node))


@ppr_app.command("update")
def ppr_update(
    store: Annotated[Path, typer.Argument(parser=path, help="Directory of an undirected graph store.")],
    edges: Annotated[
        Path, typer.Option(parser=path, help="Parquet or CSV file: source, target, op (insert or delete).")
    ],
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder of the changed store; default: replace STORE.")
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Insert and delete edges, and bring the store's PPR up to date where it changes (key: slack)."""
    from optimag_dist.options import parse_options
    from optimag_dist.ppr.update import UpdateOptions, update_ppr
    from optimag_dist.ray_session import ensure_ray

    options = parse_options(UpdateOptions, overrides, "optimag ppr update")
    if address is not None:
        ensure_ray(address)
    for done in update_ppr(store, edges, out, options, say=say):
        say(
            f"{done.path}\n  pushed {done.renewed:,} of {done.rows:,} rows again in {done.seconds:.1f} s; "
            f"largest error bound {done.worst_bound:.2f} eps"
        )


@app.command("encode")
def encode_command(
    store: Store,
    out: Annotated[str, typer.Argument(help="Directory or URI of the store to make.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a store with other content.")] = False,
    address: Address = None,
) -> None:
    """Write a store with features of raw texts or pictures by a pretrained network.

    Keys: modality, attribute, model, dtype, max_length, image_size, on_bad_picture, block_size, batch_size,
    concurrency, device.
    """
    from optimag_dist.encoding.driver import encode
    from optimag_dist.encoding.options import EncodeOptions
    from optimag_dist.options import parse_options
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore

    options = parse_options(EncodeOptions, overrides, "optimag encode")
    opened = GraphStore.open(store)
    if address is not None:
        ensure_ray(address)
    try:
        made = encode(opened, out, options, overwrite=overwrite, say=say)
    except KeyboardInterrupt:
        fail("interrupted; what is finished is kept, and the same command goes on from there", 130)
    say(f"{made.summary()}\nnext: optimag ppr {located(out)}")


@app.command()
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


@app.command()
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
    _report(run.directory)
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


Checkpoint = Annotated[str, typer.Argument(help="model.pt of a finished fit, or the fit's directory; path or URI.")]
Parts = Annotated[str, typer.Argument(help="Directory or URI of the Parquet parts to make.")]
NodeFile = Annotated[
    Path | None, typer.Option(parser=path, help="Ids to do: a Parquet column 'id', or a text file of one a line.")
]


@app.command()
def embed(
    checkpoint: Checkpoint,
    store: Store,
    out: Parts,
    overrides: Overrides = None,
    nodes: NodeFile = None,
    address: Address = None,
) -> None:
    """Write every node's embedding (keys: block_size, fanouts, device, dtype, per_modality, allow_other_store)."""
    from optimag_dist.inference.options import EmbedOptions
    from optimag_dist.options import parse_options

    _infer(checkpoint, store, out, parse_options(EmbedOptions, overrides, "optimag embed"), nodes, address)


@app.command()
def predict(
    checkpoint: Checkpoint,
    store: Store,
    out: Parts,
    overrides: Overrides = None,
    nodes: NodeFile = None,
    address: Address = None,
) -> None:
    """Write every node's most probable class (keys: block_size, fanouts, device, probabilities, allow_other_store)."""
    from optimag_dist.inference.options import PredictOptions
    from optimag_dist.options import parse_options

    _infer(checkpoint, store, out, parse_options(PredictOptions, overrides, "optimag predict"), nodes, address)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    store: Store,
    overrides: Overrides = None,
    nodes: NodeFile = None,
    out: Annotated[str | None, typer.Option(help="JSON file to write the figures to; path or URI.")] = None,
    address: Address = None,
) -> None:
    """Tell how good a trained model is (keys: split=test|val|train, task.KEY, fanouts, device, allow_other_store)."""
    from dataclasses import asdict

    from optimag_dist.inference import evaluate_tasks as tasks
    from optimag_dist.inference.driver import read_ids
    from optimag_dist.inference.evaluate import as_table
    from optimag_dist.inference.evaluate import evaluate as evaluate_classes
    from optimag_dist.inference.options import EvaluateOptions
    from optimag_dist.inference.trained import tasks_of
    from optimag_dist.options import parse_options
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore
    from optimag_dist.tasks import NodeClassificationOptions
    from optimag_dist.types import InputError

    options = parse_options(EvaluateOptions, overrides, "optimag evaluate")
    model, graph = located(checkpoint), GraphStore.open(store)
    target = None if out is None else located(out)
    kinds = [isinstance(task, NodeClassificationOptions) for task in tasks_of(model).values()]
    classes = None
    if any(kinds):
        user_ids = None if nodes is None else read_ids(nodes, graph)
        ensure_ray(address)
        alone = target if all(kinds) else None
        classes = evaluate_classes(model, graph, options, user_ids=user_ids, out=alone)
        console().print(as_table(classes))
    elif nodes is not None:
        raise InputError(f"--nodes: lists nodes to compare classes of, and {checkpoint} was trained on none")
    if not all(kinds):
        evaluations = tasks.evaluate_tasks(model, graph, options)
        console().print(*map(tasks.as_table, evaluations))
        if target is not None:
            found = None if classes is None else asdict(classes)
            tasks.write_evaluations(evaluations, target, checkpoint=model, store=graph, classes=found)


def _infer(
    checkpoint: str,
    store: str,
    out: str,
    options: "EmbedOptions | PredictOptions",
    nodes: Path | None,
    address: str | None,
) -> None:
    from optimag_dist.inference.driver import infer, read_ids
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore

    graph = GraphStore.open(store)
    user_ids = None if nodes is None else read_ids(nodes, graph)
    ensure_ray(address)
    made = infer(located(checkpoint), graph, located(out), options, user_ids=user_ids)
    say(str(made))


@app.command()
def report(run: Annotated[str, typer.Argument(help="The directory of a run or of a sweep, or its URI.")]) -> None:
    """Write the results of a run or a sweep, and what it learned, into one HTML file."""
    from optimag_dist.storage import located

    _report(located(run))


def _report(run: "AnyPath") -> None:
    from optimag_dist.report import is_sweep, render_comparison, write_report, write_sweep_report
    from optimag_dist.storage import Mirror
    from optimag_dist.train.launch import worth_reporting

    with Mirror(run, "report") as mirror:
        mirror.fetch(worth_reporting)
        if is_sweep(mirror.path):
            file = write_sweep_report(mirror.path)
        else:
            render_comparison(mirror.path, console())
            file = write_report(mirror.path)
        mirror.publish(file)
    say(f"report:      {run / file.name}")


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="A recipe of jobs/experiments, such as conflicts; or a YAML file.")],
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look in a few minutes.")] = False,
    out: Annotated[
        Path, typer.Option(parser=path, help="Folder for the results; one that is there is gone on with.")
    ] = Path("runs/experiments"),
    address: Address = None,
) -> None:
    """Repeat an experiment: fits over seeds as Ray Tune sweeps, results in Parquet, a report with pictures."""
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(parser=path, help="Where the store and the runs go.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(parser=path, help="Run directory of a demo that was interrupted.")
    ] = None,
) -> None:
    """Train on the openmoji graph, with and without the graph and the regulariser: five seeds each, two workers."""
    from optimag_dist.datasets import dataset_schema
    from optimag_dist.options import load_options
    from optimag_dist.store import ingest
    from optimag_dist.train.options import RunConfig

    if resume is not None:
        again = f"optimag demo --resume {resume}"
        _train(load_options(RunConfig, resume / "config.yaml"), resume=True, address=None, again=again)
        return
    schema = dataset_schema("openmoji")
    store = ingest(schema, out / "stores" / "openmoji")
    say(store.summary())
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    overrides = [f"name={name}", f"store={store.path}", f"out={out}"]
    config = load_options(RunConfig, schema.parent / "demo.yaml", overrides)
    _train(config, resume=False, address=None, again=f"optimag demo --resume {config.directory}")


def _train(config: "RunConfig", *, resume: bool, address: str | None, again: str) -> None:
    from optimag_dist.storage import files_below
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
        _report(run)
    except InputError:
        # Nothing to report where all have diverged.
        if not lost:
            raise
    models = ", ".join(sorted({str(run / n.split("/")[0]) for n in files_below(run) if n.endswith("/model.pt")}))
    if models:
        say(f"checkpoints: seed-*/model.pt in {models}")
    if lost:
        fail(lost, 1)


ClusterAddress = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard of a Ray cluster, http://HOST:8265; or RAY_API_SERVER_ADDRESS."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as optimag submit prints it.")]


@submit_app.command("run")
def submit_run(
    recipe: Annotated[Path, typer.Argument(parser=path, metavar="JOB.yaml", help="Recipe of a job; jobs/ holds some.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to its parameters and its steps.")
    ] = None,
    address: ClusterAddress = None,
    local: Annotated[bool, typer.Option("--local", help="Run it here; so it is where no cluster is named.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show what the job prints until it ends.")] = False,
) -> None:
    """Run the steps of a recipe, here or as a job of a Ray cluster."""
    from optimag_dist.submit import load_job, run_steps

    job = load_job(recipe, changes or [])
    for step in job.steps:
        check_command(step)
    if local or not (address or os.environ.get("RAY_API_SERVER_ADDRESS")):
        raise typer.Exit(run_steps(job.steps, job.directory, job.files))
    jobs = _jobs(address)
    submitted = jobs.submit(job)
    say(f"submitted: {submitted}")
    if follow:
        _follow(jobs, submitted)
    else:
        say(f"watch: {_submit_command('logs', jobs, submitted)} --follow")


@submit_app.command("list")
def submit_list(address: ClusterAddress = None) -> None:
    """Show the jobs the cluster remembers."""
    table = Table("job", "status", "started", "seconds")
    for job in _jobs(address).known():
        table.add_row(job.submission_id, job.status.value, *_times(job.start_time, job.end_time))
    console().print(table)


@submit_app.command("status")
def submit_status(job: JobId, address: ClusterAddress = None) -> None:
    """Show where a job stands."""
    from optimag_dist.submit.cluster import remedy

    info = _jobs(address).info(job)
    started, seconds = _times(info.start_time, info.end_time)
    say(f"{job}: {info.status.value}, started {started}, {seconds} s\n{info.message}")
    if advice := remedy(info):
        say(advice)


@submit_app.command("logs")
def submit_logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    address: ClusterAddress = None,
) -> None:
    """Show what a job printed."""
    jobs = _jobs(address)
    if follow:
        _follow(jobs, job)
    sys.stdout.write(jobs.logs(job))


@submit_app.command("stop")
def submit_stop(job: JobId, address: ClusterAddress = None) -> None:
    """End a job; what it has saved stays, and the same recipe goes on from there."""
    status = _jobs(address).stop(job).status.value
    say(f"{job}: {status}" + ("; it ends as soon as it has the resources it waits for" * (status == "PENDING")))


@submit_app.command("delete")
def submit_delete(job: JobId, address: ClusterAddress = None) -> None:
    """Have the cluster forget a job that has ended."""
    _jobs(address).delete(job)
    say(f"{job}: forgotten")


def check_command(words: Sequence[str]) -> None:
    """Check that ``optimag`` has a command that takes ``words``, without running it.

    Raises:
        InputError: it has not; the message is what the command itself would say.
    """
    from optimag_dist.types import InputError

    command, args = typer.main.get_command(app), list(words)
    name = "optimag"
    while isinstance(command, TyperGroup):
        args = command.spelt_out(args) if isinstance(command, _DefaultCommand) else args
        if not args or args[0] not in command.commands or args[0] == "submit":
            raise InputError(f"step {shlex.join(words)!r}: needed one of {', '.join(command.commands)} after {name!r}")
        name = f"{name} {args[0]}"
        command = command.commands[args.pop(0)]
    try:
        command.make_context(name, args)
    except _USAGE_ERROR as error:
        raise InputError(f"step {shlex.join(words)!r}: {error}; see {name} --help") from error


def _jobs(address: str | None) -> "Jobs":
    from optimag_dist.submit.cluster import Jobs

    return Jobs(address, say=say)


def _follow(jobs: "Jobs", job: str) -> NoReturn:
    from optimag_dist.submit.cluster import remedy

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        if nobody_listens():
            raise typer.Exit(0)

    try:
        status = jobs.follow(job, write)
    except KeyboardInterrupt:
        fail(
            f"left; the job goes on. Come back: {_submit_command('logs', jobs, job)} --follow; end it: "
            f"{_submit_command('stop', jobs, job)}",
            130,
        )
    info = jobs.info(job)
    say(f"{job}: {info.status.value}")
    if advice := remedy(info):
        fail(advice, status)
    raise typer.Exit(status)


def _submit_command(name: str, jobs: "Jobs", job: str) -> str:
    return f"optimag submit {name} {job} --address {jobs.address}"


def _times(start_ms: int | None, end_ms: int | None) -> tuple[str, str]:
    """When a job started, and how many seconds it took or takes so far."""
    if start_ms is None:
        return "", ""
    start = datetime.fromtimestamp(start_ms / 1000)
    end = datetime.fromtimestamp(end_ms / 1000) if end_ms else datetime.now()
    return f"{start:%Y-%m-%d %H:%M:%S}", f"{(end - start).total_seconds():.0f}"


if __name__ == "__main__":
    main()
