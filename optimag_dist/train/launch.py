"""The driver of a run: checks, PPR artefacts, a group that goes through all fits, what is shown of it, its tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optimag_dist.console import console as plain_console
from optimag_dist.console import say
from optimag_dist.locks import sole_user
from optimag_dist.options import dump_options, load_options
from optimag_dist.ray_session import translated_ray_errors
from optimag_dist.remote_copies import Mirror
from optimag_dist.storage import AnyPath
from optimag_dist.store import GraphStore
from optimag_dist.telemetry import check_trackers
from optimag_dist.train.fit import Fit
from optimag_dist.train.log import in_one_line, read_records, write_rows
from optimag_dist.train.options import RunConfig, fingerprint, worth_reporting
from optimag_dist.train.validation import check_free, check_input, refuse_second
from optimag_dist.train.worker_group import WorkerGroup, WorkerGroupSpec, WorkersLost, worker_group_spec
from optimag_dist.types import Diverged, InputError, RunError

# The view is kept waiting no longer than this.
_PATIENCE_S = 1.0


def launch(config: RunConfig, *, resume: bool = False, address: str | None = None) -> AnyPath:
    """Train every variant of ``config`` with every seed on Ray workers.

    Args:
        resume: go on with the run directory that is there: finished fits are kept, unfinished ones go on from their
            last checkpoint.
        address: of a running Ray cluster; None uses the session there is or starts an embedded one.

    Returns:
        The run directory: ``config.yaml``, ``results.parquet``, ``metrics.parquet``, and
        ``<variant>/seed-<seed>/`` for every fit.

    Raises:
        InputError: the store, the task or the configuration do not fit together, the run directory is in the way, or
            the cluster is too small for the workers.
        RunError: another process is at work on the run, or the workers cannot go on.
        Diverged: some fits did, after all others were finished and the tables written.
    """
    go_on = "finished fits and checkpoints are kept: go on with --resume"
    with (
        sole_user(config.location, refuse_second),
        Mirror(config.location, "driver") as run,
        translated_ray_errors(str(config.location), go_on),
    ):
        run.fetch(worth_reporting)
        _launch(config, config.model_copy(update={"out": run.path.parent}), run, resume, address)
    return config.location


def _launch(kept: RunConfig, config: RunConfig, run: Mirror, resume: bool, address: str | None) -> None:
    """:func:`launch` of ``config``, whose run directory is on this host and mirrors that of ``kept``."""
    store = GraphStore.open(config.store)
    fits = plan_fits(config)
    for note in dict.fromkeys(note for fit in fits for note in check_input(store, fit.config, fit.seed)):
        say(note)
    check_trackers(config.tracking)
    _check_directory(config, fits, resume, kept.location)

    needed = (fit.config.ppr for fit in fits if fit.config.needs_ppr)
    with worker_group_spec(config, store, needed, address, kept.location) as spec:
        dump_options(kept, config.directory / "config.yaml")
        run.publish(config.directory / "config.yaml")
        run.flush()
        results = _train(spec, fits)
    run.fetch(worth_reporting)
    ended = [{**result, "status": "diverged" if "diverged" in result else "finished"} for result in results]
    write_rows(config.directory / "results.parquet", ended)
    epochs = [
        {"variant": fit.variant, "seed": fit.seed, **record}
        for fit in fits
        for record in read_records(fit.directory / "metrics.jsonl")
    ]
    write_rows(config.directory / "metrics.parquet", epochs)
    run.publish_all()
    lost = [result for result in results if "diverged" in result]
    if lost:
        names = ", ".join(f"{fit['variant']} seed {fit['seed']}" for fit in lost)
        raise Diverged(
            f"{len(lost)} of {len(results)} fits diverged ({names}), {len(results) - len(lost)} finished. The first "
            f"one said: {lost[0]['diverged']}"
        )


def plan_fits(config: RunConfig) -> list[Fit]:
    """Every variant with every seed, seeds outermost, so that a run cut short has whole comparisons."""
    variants = config.resolve()
    return [
        Fit(name, seed, variant, config.directory / name / f"seed-{seed}")
        for seed in config.seeds
        for name, variant in variants.items()
    ]


def _check_directory(config: RunConfig, fits: list[Fit], resume: bool, shown: AnyPath) -> None:
    """Refuse a run directory that is in the way, or that does not hold what is to be resumed."""
    directory, saved = config.directory, config.directory / "config.yaml"
    if not resume:
        check_free(directory, shown)
        return
    if not saved.exists():
        raise InputError(f"{shown}: no run to resume here; leave out --resume to start one")
    started = load_options(RunConfig, saved).model_copy(update={"out": config.out})
    before = {(f.variant, f.seed): fingerprint(f.config, f.seed) for f in plan_fits(started)}
    for fit in fits:
        mine = fingerprint(fit.config, fit.seed)
        if before.get((fit.variant, fit.seed), mine) != mine:
            raise InputError(
                f"{shown / saved.name}: variant {fit.variant!r} was started with other options; resume with the same "
                f"ones (train.epochs, workers.* and new seeds or variants may change), or train under another name"
            )


def _train(spec: WorkerGroupSpec, fits: list[Fit]) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    try:
        with ProgressView(len(fits)) as view, WorkerGroup(spec, view.say) as group:
            numbers = group.submit(fits)
            while len(results) < len(fits):
                for kind, number, content in group.events(_PATIENCE_S):
                    if kind == "line":
                        view.say(content)
                    elif kind == "epoch":
                        fit = fits[number]
                        view.epoch(f"{fit.variant} seed {fit.seed}", content, fit.config.train.epochs)
                    elif kind == "result":
                        results[number] = content
                        view.result(content)
    except WorkersLost as error:
        raise RunError(
            f"{error}; workers.max_failures={spec.options.max_failures} is used up. Finished fits and checkpoints are "
            f"kept: go on with --resume, or allow more failures"
        ) from error
    return [results[number] for number in numbers]


class ProgressView:
    """Shows what it is told until the ``with`` block ends, on standard output unless another ``console`` is given.

    Bars drawn by the workers themselves would be mixed up with each other and with Ray's own lines. Where the output is
    no terminal (a job's log, CI) every finished fit is one line instead.
    """

    def __init__(self, num_fits: int, console: Console | None = None) -> None:
        console = console or plain_console()
        self._num_fits, self._ended = num_fits, 0
        self._told: set[str] = set()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._fits = self._bars.add_task("fits", total=num_fits, note="starting workers")
        self._epochs = self._bars.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._bars.console.print(f"  {text}", soft_wrap=True)

    def epoch(self, fit: str, record: Mapping[str, Any], epochs: int) -> None:
        """``fit`` has ended an epoch, of ``epochs`` at most."""
        # One has room, the first.
        validated = [f"  val {n.removeprefix('val/')} {v:.3f}" for n, v in record.items() if n.startswith("val/")]
        note = f"loss {record['loss']:.3f}" + "".join(validated[:1])
        self._bars.update(
            self._epochs, description=fit, completed=record["epoch"] + 1, total=epochs, note=note, visible=True
        )
        self._bars.update(self._fits, note="")

    def result(self, result: Mapping[str, Any]) -> None:
        """A fit has ended, or was found finished."""
        self._ended += 1
        self.say(
            f"{self._ended:>3}/{self._num_fits}  {result['variant']:<14} seed {result['seed']:<2}  "
            f"{in_one_line(result)}"
        )
        for advice in filter(None, result.get("advice", "").split("\n")):
            if advice not in self._told:
                self._told.add(advice)
                self.say(f"         {advice}")
        self._bars.update(self._fits, completed=self._ended, note="")
