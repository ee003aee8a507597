"""``optimag data``: graphs that come with the package, and synthetic ones."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from optimag_dist.cli.arguments import Overrides, path
from optimag_dist.console import console, say

app = typer.Typer(help="Real graphs that come with the package.", no_args_is_help=True)


@app.command("list")
def data_list() -> None:
    """Show the graphs that come with the package."""
    from optimag_dist.datasets import list_datasets

    table = Table("name", "nodes", "edges", "modalities", "classes", "licence", "description")
    for info in list_datasets():
        modalities = ", ".join(f"{name} {width}" for name, width in info.modalities.items())
        sizes = f"{info.nodes:,}", f"{info.edges:,}", modalities, str(len(info.classes))
        table.add_row(info.name, *sizes, info.licence, info.description)
    console().print(table)


@app.command("get")
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


@app.command("make")
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
