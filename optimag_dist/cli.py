"""The ``optimag`` command: thin commands over the packages.

Every command imports what it needs itself: torch, DGL and Ray take seconds that ``optimag --help`` need not wait for.
"""

import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from optimag_dist.inference.options import EmbedOptions, PredictOptions
    from optimag_dist.train.options import RunConfig

app = typer.Typer(
    help="OptiMAG for large multimodal attributed graphs: ingest, PPR, distributed training, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _ComputeByDefault(TyperGroup):
    """``optimag ppr STORE`` means ``optimag ppr compute STORE``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["compute", *args]
        return super().parse_args(ctx, args)


data_app = typer.Typer(help="Real graphs that come with the package.", no_args_is_help=True)
app.add_typer(data_app, name="data")
ppr_app = typer.Typer(
    cls=_ComputeByDefault,
    help="Personalised PageRank of every node: optimag ppr STORE [KEY=VALUE]... computes it.",
    no_args_is_help=True,
)
app.add_typer(ppr_app, name="ppr")
console = Console()

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the configuration.")]
Address = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; default: an embedded one.")]


def main() -> None:
    """Entry point: errors of input are told in one message, without a traceback."""
    try:
        app()
    except ValueError as error:
        from optimag_dist.types import InputError

        if not isinstance(error, InputError):
            raise
        _fail(str(error), 2)


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True).print(f"[bold red]optimag:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


@app.command()
def doctor() -> None:
    """Check this machine: versions, devices, memory, backends, and what to do about anything wrong."""
    from optimag_dist.doctor import as_table, diagnose, healthy

    findings = diagnose()
    console.print(as_table(findings))
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
    console.print(table)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A name from: optimag data list")],
    out: Annotated[Path | None, typer.Option(help="Directory to make; default: data/NAME.")] = None,
) -> None:
    """Copy a graph's tables and its schema into a directory, ready for ``optimag ingest``."""
    from optimag_dist.datasets import copy_dataset

    target = copy_dataset(name, out or Path("data") / name)
    console.print(f"{target}\nnext: optimag ingest {target}/schema.yaml stores/{name}", highlight=False, soft_wrap=True)


@app.command("ingest")
def ingest_command(
    source: Annotated[
        Path, typer.Argument(help="YAML file that describes tables, or npz, DGL, PyG, OGB, MAGB, MM-Graph.")
    ],
    store: Annotated[Path, typer.Argument(help="Directory of the graph store to make.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a store with other content.")] = False,
) -> None:
    """Read a graph from tables or another layout into a memory-mapped graph store."""
    from optimag_dist.store import ingest

    made = ingest(source, store, overrides or [], overwrite=overwrite)
    console.print(made.summary(), highlight=False, soft_wrap=True)
    console.print(f"next: optimag ppr {store}", highlight=False, soft_wrap=True)


@app.command("partition")
def partition_command(
    store: Annotated[Path, typer.Argument(help="Directory of a graph store.")],
    overrides: Overrides = None,
) -> None:
    """Divide a store into self-contained shards (keys: parts, method, seed, features)."""
    from optimag_dist.options import parse_options
    from optimag_dist.store import GraphStore, PartitionOptions, partition_store
    from optimag_dist.store.partition import as_table

    options = parse_options(PartitionOptions, overrides, "optimag partition")
    partition = partition_store(GraphStore.open(store), options)
    console.print(as_table(partition.meta))
    console.print(f"{partition.path}\nnext: optimag ppr {store} placement=sharded", highlight=False, soft_wrap=True)


@ppr_app.command("compute")
def ppr_compute(
    store: Annotated[Path, typer.Argument(help="Directory of a graph store.")],
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Compute every node's top-k personalised PageRank into the store.

    Keys: teleport, eps, k, block_size, placement, partition, actors, row_cache_mb, in_flight_mb.
    """
    from optimag_dist.options import parse_options
    from optimag_dist.ppr import PPROptions, compute_ppr
    from optimag_dist.ppr.driver import RunTotals
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.store import GraphStore

    options = parse_options(PPROptions, overrides, "optimag ppr")
    opened = GraphStore.open(store)
    ensure_ray(address)
    totals = RunTotals()
    artefact = compute_ppr(opened, options, totals=totals)
    if totals.blocks:
        console.print(totals.line(), highlight=False, soft_wrap=True)
    console.print(f"{artefact.path}", highlight=False, soft_wrap=True)


@ppr_app.command("inspect")
def ppr_inspect(
    artefact: Annotated[Path, typer.Argument(help="Directory of a PPR artefact, as optimag ppr prints it.")],
    node: Annotated[str | None, typer.Option(help="Your id of a node whose row is shown; needs --store.")] = None,
    store: Annotated[Path | None, typer.Option(help="The graph store the artefact belongs to.")] = None,
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
    console.print(summary_table(opened))
    if node is not None and store is not None:
        console.print(row_table(opened, GraphStore.open(store), node))


@ppr_app.command("update")
def ppr_update(
    store: Annotated[Path, typer.Argument(help="Directory of an undirected graph store.")],
    edges: Annotated[Path, typer.Option(help="Parquet or CSV file: source, target, op (insert or delete).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the changed store; default: replace STORE.")] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Insert and delete edges, and bring the store's PPR up to date where it changes (key: slack)."""
    from optimag_dist.options import parse_options
    from optimag_dist.ppr import UpdateOptions, update_ppr
    from optimag_dist.ray_session import ensure_ray

    options = parse_options(UpdateOptions, overrides, "optimag ppr update")
    if address is not None:
        ensure_ray(address)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    for done in update_ppr(store, edges, out, options, say=say):
        say(
            f"{done.path}\n  pushed {done.renewed:,} of {done.rows:,} rows again in {done.seconds:.1f} s; "
            f"largest error bound {done.worst_bound:.2f} eps"
        )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of a run.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run directory that is there.")] = False,
    address: Address = None,
) -> None:
    """Train every variant and seed of a run on Ray workers, and report."""
    from optimag_dist.options import load_options
    from optimag_dist.train.options import RunConfig

    again = " ".join(["optimag train", str(config), *(overrides or []), "--resume"])
    _train(load_options(RunConfig, config, overrides or []), resume=resume, address=address, again=again)


Checkpoint = Annotated[Path, typer.Argument(help="model.pt of a finished fit, or the fit's directory.")]
NodeFile = Annotated[Path | None, typer.Option(help="Ids to do: a Parquet column 'id', or a text file of one a line.")]


@app.command()
def embed(
    checkpoint: Checkpoint,
    store: Annotated[Path, typer.Argument(help="Directory of a graph store.")],
    out: Annotated[Path, typer.Argument(help="Directory of Parquet parts to make.")],
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
    store: Annotated[Path, typer.Argument(help="Directory of a graph store.")],
    out: Annotated[Path, typer.Argument(help="Directory of Parquet parts to make.")],
    overrides: Overrides = None,
    nodes: NodeFile = None,
    address: Address = None,
) -> None:
    """Write every node's most probable class (keys: block_size, fanouts, device, probabilities, allow_other_store)."""
    from optimag_dist.inference.options import PredictOptions
    from optimag_dist.options import parse_options

    _infer(checkpoint, store, out, parse_options(PredictOptions, overrides, "optimag predict"), nodes, address)


def _infer(
    checkpoint: Path,
    store: Path,
    out: Path,
    options: "EmbedOptions | PredictOptions",
    nodes: Path | None,
    address: str | None,
) -> None:
    from optimag_dist.inference.driver import infer, read_ids
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.store import GraphStore

    graph = GraphStore.open(store)
    user_ids = None if nodes is None else read_ids(nodes, graph)
    ensure_ray(address)
    console.print(f"{infer(checkpoint, graph, out, options, user_ids=user_ids)}", highlight=False, soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write a run's results and what it learned into one HTML file."""
    from optimag_dist.report import render_comparison, write_report

    render_comparison(run, console)
    console.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the store and the runs go.")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Run directory of a demo that was interrupted.")] = None,
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
    console.print(store.summary(), highlight=False, soft_wrap=True)
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    overrides = [f"name={name}", f"store={store.path}", f"out={out}"]
    config = load_options(RunConfig, schema.parent / "demo.yaml", overrides)
    _train(config, resume=False, address=None, again=f"optimag demo --resume {config.directory}")


def _train(config: "RunConfig", *, resume: bool, address: str | None, again: str) -> None:
    from optimag_dist.report import render_comparison, write_report
    from optimag_dist.train.launch import launch

    try:
        run = launch(config, resume=resume, address=address)
    except KeyboardInterrupt:
        _fail(f"interrupted; finished fits and checkpoints are kept in {config.directory}; go on with: {again}", 130)
    render_comparison(run, console)
    models = ", ".join(sorted({str(path.parents[1]) for path in run.glob("*/seed-*/model.pt")}))
    console.print(f"report:      {write_report(run)}", highlight=False, soft_wrap=True)
    console.print(f"checkpoints: seed-*/model.pt in {models}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
