"""Commands about what was trained: ``optimag embed``, ``predict``, ``evaluate`` and ``report``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimag_dist.cli.arguments import Address, Overrides, Store, path
from optimag_dist.console import console, say

if TYPE_CHECKING:
    from optimag_dist.storage import AnyPath

Checkpoint = Annotated[str, typer.Argument(help="model.pt of a finished fit, or the fit's directory; path or URI.")]
Parts = Annotated[str, typer.Argument(help="Directory or URI of the Parquet parts to make.")]
NodeFile = Annotated[
    Path | None, typer.Option(parser=path, help="Ids to do: a Parquet column 'id', or a text file of one a line.")
]


def _writes(name: str, what: str) -> Callable[..., None]:
    """The command ``name``, which writes ``what`` of every node."""

    def command(
        checkpoint: Checkpoint,
        store: Store,
        out: Parts,
        overrides: Overrides = None,
        nodes: NodeFile = None,
        address: Address = None,
    ) -> None:
        from optimag_dist.inference.driver import infer
        from optimag_dist.inference.ids import read_ids
        from optimag_dist.inference.options import EmbedOptions, PredictOptions
        from optimag_dist.options import parse_options
        from optimag_dist.ray_session import ensure_ray
        from optimag_dist.storage import located
        from optimag_dist.store import GraphStore

        kind: type[EmbedOptions | PredictOptions] = EmbedOptions if name == "embed" else PredictOptions
        options = parse_options(kind, overrides, f"optimag {name}")
        graph = GraphStore.open(store)
        user_ids = None if nodes is None else read_ids(nodes, graph)
        ensure_ray(address)
        say(str(infer(located(checkpoint), graph, located(out), options, user_ids=user_ids)))

    command.__name__, command.__doc__ = name, f"Write every node's {what}"
    return command


embed = _writes("embed", "embedding (keys: block_size, fanouts, device, dtype, per_modality, allow_other_store).")
predict = _writes(
    "predict", "most probable class (keys: block_size, fanouts, device, probabilities, allow_other_store)."
)


def evaluate(
    checkpoint: Checkpoint,
    store: Store,
    overrides: Overrides = None,
    nodes: NodeFile = None,
    out: Annotated[str | None, typer.Option(help="JSON file to write the metrics to; path or URI.")] = None,
) -> None:
    """Tell how good a trained model is (keys: split=test|val|train, task.KEY, fanouts, seed, device,
    allow_other_store)."""
    from optimag_dist.inference.evaluate import as_table, evaluate, write_evaluations
    from optimag_dist.inference.ids import read_ids
    from optimag_dist.inference.options import EvaluateOptions
    from optimag_dist.options import parse_options
    from optimag_dist.storage import located
    from optimag_dist.store import GraphStore

    options = parse_options(EvaluateOptions, overrides, "optimag evaluate")
    model, graph = located(checkpoint), GraphStore.open(store)
    user_ids = None if nodes is None else read_ids(nodes, graph)
    evaluations = evaluate(model, graph, options, user_ids=user_ids)
    console().print(*map(as_table, evaluations))
    if out is not None:
        write_evaluations(evaluations, located(out), checkpoint=model, store=graph)


def report(run: Annotated[str, typer.Argument(help="The directory of a run or of a sweep, or its URI.")]) -> None:
    """Write the results of a run or a sweep, and what it learned, into one HTML file."""
    from optimag_dist.storage import located

    show_report(located(run))


def show_report(run: "AnyPath") -> None:
    """Write the report of a run or a sweep, and print what it says first and where it is."""
    from optimag_dist.remote_copies import Mirror
    from optimag_dist.report import is_sweep, render_comparison, write_report, write_sweep_report
    from optimag_dist.train.options import worth_reporting

    with Mirror(run, "report") as mirror:
        mirror.fetch(worth_reporting)
        if is_sweep(mirror.path):
            file = write_sweep_report(mirror.path)
        else:
            render_comparison(mirror.path, console())
            file = write_report(mirror.path)
        mirror.publish(file)
    say(f"report:      {run / file.name}")
