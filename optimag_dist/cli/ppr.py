"""``optimag ppr``: personalised PageRank of a store, computed, looked at, brought up to date."""

from pathlib import Path
from typing import Annotated

import typer

from optimag_dist.cli.arguments import Address, DefaultCommand, Overrides, Store, path
from optimag_dist.console import console, say

app = typer.Typer(
    cls=DefaultCommand,
    help="Personalised PageRank of every node: optimag ppr STORE [KEY=VALUE]... computes it.",
    no_args_is_help=True,
)


@app.command("compute")
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


@app.command("inspect")
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


@app.command("update")
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
