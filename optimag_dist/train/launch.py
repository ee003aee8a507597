"""The rim between a run's configuration and Ray: checks, PPR, worker group, results.

One ``TorchTrainer`` runs every fit of a run in turn, so that a comparison of variants over seeds pays once for starting
workers. What a fit leaves lies in its own directory and is all that resuming needs; Ray is told results, not weights.
"""

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from optimag_dist.console import say
from optimag_dist.files import atomic
from optimag_dist.messages import said_by_system
from optimag_dist.options import dump_options, load_options
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ray_session import ensure_ray, translated_ray_errors
from optimag_dist.sampling import GraphRows
from optimag_dist.storage import AnyPath, Mirror, file_system, sole_user
from optimag_dist.store import GraphStore
from optimag_dist.telemetry import TrackingOptions, check_trackers
from optimag_dist.train.doors import check_free, check_input, refuse_second
from optimag_dist.train.fit import Fit, Worker, try_fit
from optimag_dist.train.guard import Guard
from optimag_dist.train.log import read_records
from optimag_dist.train.mirrored import mirrored
from optimag_dist.train.options import RunConfig, TrainOptions, fingerprint
from optimag_dist.train.owners import shard_owners
from optimag_dist.train.placement import Cluster, use_gpus
from optimag_dist.train.progress import ProgressView
from optimag_dist.train.ray_host import RayHost
from optimag_dist.train.telemetry import telling
from optimag_dist.train.watch import Watch
from optimag_dist.types import Diverged, InputError, RunError

# A node may go while workers are started on it.
_START_RETRIES = 3
# By so much torch's own time-out, which names nobody, comes after ours.
_GRACE_S = 60
# What Ray Train itself notes down lies in a folder of the run.
_RAY_TRAIN = "ray_train"


def launch(config: RunConfig, *, resume: bool = False, address: str | None = None) -> AnyPath:
    """Train every variant of ``config`` with every seed on Ray workers.

    Args:
        config: the run.
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


def worth_reporting(name: str) -> bool:
    """Whether a file of a run directory is one that a driver or a report reads."""
    return not (name.endswith("checkpoint.pt") or "tensorboard/" in name or name.startswith(f"{_RAY_TRAIN}/"))


def _launch(kept: RunConfig, config: RunConfig, run: Mirror, resume: bool, address: str | None) -> None:
    """:func:`launch` of ``config``, whose run directory is on this host and mirrors that of ``kept``."""
    store = GraphStore.open(config.store)
    fits = plan_fits(config)
    for note in dict.fromkeys(note for fit in fits for note in check_input(store, fit.config, fit.seed)):
        say(note)
    check_trackers(config.tracking)
    _check_directory(config, fits, resume, kept.location)

    options = fits[0].config.train
    # An embedded session counts CPUs for bookkeeping alone: more workers than cores run, only slower.
    ensure_ray(address, num_cpus=max(len(os.sched_getaffinity(0)), options.workers * options.cpus_per_worker))
    use_gpu = use_gpus(options.workers, options.cpus_per_worker, options.device)
    prior_paths = _compute_priors(store, fits)
    dump_options(kept, config.directory / "config.yaml")
    run.publish(config.directory / "config.yaml")
    run.flush()
    with shard_owners(store, options.owners if options.placement == "sharded" else 0) as rows:
        results = _train(kept.location, store, fits, prior_paths, rows, use_gpu, config.tracking)
    run.fetch(worth_reporting)
    _write_tables(config.directory, fits, results)
    run.publish_all()
    lost = [result for result in results if "diverged" in result]
    if lost:
        raise Diverged(_told_lost(lost, len(results)))


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
    if resume:
        if not saved.exists():
            raise InputError(f"{shown}: no run to resume here; leave out --resume to start one")
        started = load_options(RunConfig, saved).model_copy(update={"out": config.out})
        before = {(f.variant, f.seed): fingerprint(f.config, f.seed) for f in plan_fits(started)}
        for fit in fits:
            known = before.get((fit.variant, fit.seed))
            if known is not None and known != fingerprint(fit.config, fit.seed):
                raise InputError(
                    f"{shown / saved.name}: variant {fit.variant!r} was started with other options; resume with the "
                    f"same ones (train.epochs, train.workers and new seeds or variants may change), or train under "
                    f"another name"
                )
    else:
        check_free(directory, shown)


def _compute_priors(store: GraphStore, fits: list[Fit]) -> dict[PPROptions, AnyPath]:
    """One PPR artefact per distinct set of options, found or computed."""
    wanted = dict.fromkeys(fit.config.ppr for fit in fits if fit.config.needs_ppr)
    return {options: compute_ppr(store, options).location for options in wanted}


def _train(
    run: AnyPath,
    store: GraphStore,
    fits: list[Fit],
    priors: dict[PPROptions, AnyPath],
    rows: GraphRows | None,
    use_gpu: bool,
    tracking: TrackingOptions,
) -> list[dict[str, Any]]:
    options = fits[0].config.train
    # Of one attempt to place the workers; Ray takes it from the environment alone.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(options.start_timeout_s / (_START_RETRIES + 1))
    storage_filesystem, storage_path = file_system(run)
    with ProgressView(len(fits)) as view:
        trainer = ray.train.torch.TorchTrainer(
            _worker_loop,
            train_loop_config={
                "run": run,
                "fits": fits,
                "store": store.location,
                "priors": priors,
                "rows": rows,
                "options": options,
                "board": view.board,
                "tracking": tracking,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": options.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if use_gpu else "gloo",
                # Collectives wait for a stuck rank until the guard has named and killed it.
                timeout_s=int(options.stall_timeout_s + options.start_timeout_s + _GRACE_S),
            ),
            run_config=ray.train.RunConfig(
                name=_RAY_TRAIN,
                storage_path=storage_path,
                storage_filesystem=storage_filesystem,
                failure_config=ray.train.FailureConfig(
                    max_failures=options.max_failures, controller_failure_limit=_START_RETRIES
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                callbacks=[_TellBoard(view.board)],
            ),
        )
        return _run(trainer, view, options).return_value


def _run(trainer: ray.train.torch.TorchTrainer, view: ProgressView, options: TrainOptions) -> ray.train.Result:
    """``trainer.fit()`` on a thread: on the main thread Ray takes Ctrl-C over and exits as if all were well.

    Raises:
        InputError: a worker cannot use its input.
        RunError: the workers did not come, or died more often than ``train.max_failures`` allows.
    """
    # What comes first counts: the trainer's end or the guard's.
    outcome: queue.SimpleQueue[ray.train.Result | BaseException] = queue.SimpleQueue()

    def fit() -> None:
        try:
            outcome.put(trainer.fit())
        except BaseException as error:
            outcome.put(error)

    def give_up(error: Exception) -> None:
        # The controller would start the workers again.
        controller = ray.get(view.board.controller.remote())
        if controller is not None:
            controller.abort.remote()
        outcome.put(error)

    watch = Watch(options.workers, options.start_timeout_s, options.stall_timeout_s)
    with Guard(view.board, watch, view.say, give_up) as guard:
        threading.Thread(target=fit, daemon=True).start()
        end = outcome.get()
    if isinstance(getattr(end, "controller_failure", None), WorkerGroupStartupTimeoutError):
        raise RunError(
            f"the workers were not placed within {options.start_timeout_s:g} s: {options.workers} of "
            f"{options.cpus_per_worker} CPUs each were asked for; {Cluster.current()}; CPUs free now: "
            f"{ray.available_resources().get('CPU', 0):g}. Raise train.start_timeout_s, or add nodes; go on with "
            f"--resume"
        )
    if isinstance(end, ray.train.TrainingFailedError):
        raise _explained(end, guard.last_words, options) from end
    if isinstance(end, BaseException):
        raise end
    return end


def _explained(error: ray.train.TrainingFailedError, last_words: str, options: TrainOptions) -> Exception:
    """What ended the workers: an error of theirs as it is, a death in one line."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        while failure is not None:
            if isinstance(failure, InputError):
                return failure
            if isinstance(failure, OSError | MemoryError):
                what = said_by_system(failure) if isinstance(failure, OSError) else "the memory of a host ran out"
                return RunError(f"{what}. Finished fits and checkpoints are kept: go on with --resume")
            failure = failure.__cause__
    dead = [rank for rank, e in failures.items() if isinstance(e, WorkerHealthCheckFailedError)]
    # A peer of a dead worker may tell of it before Ray has noticed.
    bereft = [rank for rank, e in failures.items() if "gloo" in str(e) or "NCCL" in str(e)]
    if not dead and not bereft:
        return error
    ranks, what = (dead, "died, by a signal or with its host") if dead else (bereft, "lost the connection to a peer")
    blame = last_words or f"rank {', '.join(map(str, ranks))} of the workers {what}"
    return RunError(
        f"{blame}; train.max_failures={options.max_failures} is used up. Finished fits and checkpoints are kept: "
        f"go on with --resume, or allow more failures"
    )


class _TellBoard(ControllerCallback, WorkerGroupCallback):
    """Tells a :class:`ProgressBoard`, from the actor that starts the workers."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        self._board.controlled_by.remote(ray.get_runtime_context().current_actor)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        ray.get(self._board.starting.remote())


def _worker_loop(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every fit in turn, on one rank."""
    context, options, board = ray.train.get_context(), config["options"], config["board"]
    torch.set_num_threads(options.cpus_per_worker)
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    results = []
    with RayHost(board, worker.rank, options.stall_timeout_s) as host:
        try:
            store = GraphStore.open(config["store"])
            priors = {options: PPRArtefact.open(path) for options, path in config["priors"].items()}
            for fit in config["fits"]:
                host.begin(fit)
                ppr = priors.get(fit.config.ppr) if fit.config.needs_ppr else None
                place = config["run"] / fit.variant / f"seed-{fit.seed}"
                with (
                    mirrored(fit, place, worker.rank, host) as (here, listening),
                    telling(
                        listening,
                        here,
                        worker.rank,
                        run=config["run"].name,
                        tracking=config["tracking"],
                        say=board.say.remote,
                    ) as told,
                ):
                    result = try_fit(here, store, ppr, worker, told, config["rows"])
                assert result is not None, "nobody stops a fit of a run"
                if worker.rank == 0:
                    ray.get(board.finished.remote(result))
                ray.train.report(result)
                results.append(result)
        except InputError as error:
            ray.get(board.refuse.remote(error))
            raise
        host.done()
    return results


def _write_tables(directory: Path, fits: list[Fit], results: list[dict[str, Any]]) -> None:
    """``results.parquet``: a row per fit; ``metrics.parquet``: a row per fit and epoch."""
    ended = [{**result, "status": "diverged" if "diverged" in result else "finished"} for result in results]
    _write_rows(directory / "results.parquet", ended)
    epochs = [
        {"variant": fit.variant, "seed": fit.seed, **record}
        for fit in fits
        for record in read_records(fit.directory / "metrics.jsonl")
    ]
    _write_rows(directory / "metrics.parquet", epochs)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic(path) as temporary:
        pq.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), temporary)


def _told_lost(lost: Sequence[Mapping[str, Any]], planned: int) -> str:
    names = ", ".join(f"{fit['variant']} seed {fit['seed']}" for fit in lost)
    return (
        f"{len(lost)} of {planned} fits diverged ({names}), {planned - len(lost)} finished. The first one said: "
        f"{lost[0]['diverged']}"
    )
