"""The ``optimag`` command: thin commands over the packages.

Every command imports what it needs itself: torch, DGL and Ray take seconds that ``optimag --help`` need not wait for.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from optimag_dist.train.options import RunConfig

app = typer.Typer(
    help="OptiMAG for large multimodal attributed graphs: ingest, PPR, distributed training, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Real graphs that come with the package.", no_args_is_help=True)
app.add_typer(data_app, name="data")
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
    schema: Annotated[Path, typer.Argument(help="YAML file that describes the node and edge tables.")],
    store: Annotated[Path, typer.Argument(help="Directory of the graph store to make.")],
    overwrite: Annotated[bool, typer.Option(help="Replace a store with other content.")] = False,
) -> None:
    """Read node and edge tables into a memory-mapped graph store."""
    from optimag_dist.store import ingest

    console.print(ingest(schema, store, overwrite=overwrite).summary(), highlight=False, soft_wrap=True)
    console.print(f"next: optimag ppr {store}", highlight=False, soft_wrap=True)


@app.command("ppr")
def ppr_command(
    store: Annotated[Path, typer.Argument(help="Directory of a graph store.")],
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Compute every node's top-k personalised PageRank into the store (keys: teleport, eps, k, block_size)."""
    from optimag_dist.options import apply_overrides, validate_options
    from optimag_dist.ppr import PPROptions, compute_ppr
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.store import GraphStore

    options = validate_options(PPROptions, apply_overrides({}, overrides or []), source="optimag ppr")
    ensure_ray(address)
    artefact = compute_ppr(GraphStore.open(store), options)
    console.print(f"{artefact.path}", highlight=False, soft_wrap=True)


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
