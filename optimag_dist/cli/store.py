"""Commands that make a store or change it: ``optimag ingest``, ``partition``, ``split`` and ``encode``."""

from pathlib import Path
from typing import Annotated

import typer

from optimag_dist.cli.arguments import Address, Overrides, Store, path
from optimag_dist.console import console, fail, say


def ingest(
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
    from optimag_dist.store.ingest import ingest as make_store

    made = make_store(source, store, overrides or [], overwrite=overwrite)
    say(made.summary())
    say(f"next: optimag ppr {located(store)}")


def partition(
    store: Annotated[Path, typer.Argument(parser=path, help="Directory of a graph store.")],
    overrides: Overrides = None,
) -> None:
    """Divide a store into self-contained shards (keys: parts, method, seed, features)."""
    from optimag_dist.options import parse_options
    from optimag_dist.store import GraphStore, PartitionOptions, partition_store
    from optimag_dist.store.partition import as_table

    options = parse_options(PartitionOptions, overrides, "optimag partition")
    made = partition_store(GraphStore.open(store), options)
    console().print(as_table(made.meta))
    say(f"{made.path}\nnext: optimag ppr {store} placement=sharded")


def split(
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


def encode(
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
    from optimag_dist.encoding.block import EncodeOptions
    from optimag_dist.encoding.driver import encode as encode_store
    from optimag_dist.options import parse_options
    from optimag_dist.ray_session import ensure_ray
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore

    options = parse_options(EncodeOptions, overrides, "optimag encode")
    opened = GraphStore.open(store)
    if address is not None:
        ensure_ray(address)
    try:
        made = encode_store(opened, out, options, overwrite=overwrite, say=say)
    except KeyboardInterrupt:
        fail("interrupted; what is finished is kept, and the same command goes on from there", 130)
    say(f"{made.summary()}\nnext: optimag ppr {located(out)}")
