"""The driver of a sweep: checks, artefacts, Ray Tune, and what is left at the end."""

import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from optimag_dist.locks import sole_user
from optimag_dist.options import dump_options, load_options
from optimag_dist.ray_session import translated_ray_errors
from optimag_dist.store import GraphStore
from optimag_dist.tasks import val_metrics_of
from optimag_dist.telemetry import check_trackers
from optimag_dist.train.options import RunConfig
from optimag_dist.train.placement import Cluster
from optimag_dist.train.validation import check_free, check_input, refuse_second
from optimag_dist.train.worker_group import worker_group_spec
from optimag_dist.tune.follow import Follower
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.results import TrialRow, best, export_best, write_table
from optimag_dist.tune.search import make_scheduler, search_arguments
from optimag_dist.tune.space import Point, configure, corners, known_points, num_trials, priors_needed
from optimag_dist.tune.trial import SweepTrial, TrialPlan, plan_fits
from optimag_dist.tune.view import SweepView
from optimag_dist.types import InputError

# After Ctrl-C the workers are given so long to write their checkpoints.
_LEAVE_S = 20
# Tune's own state under the sweep's directory.
_STATE = "tune"


def run_sweep(
    config: RunConfig, options: SweepOptions, *, resume: bool = False, address: str | None = None
) -> list[TrialRow]:
    """Search ``options.space`` around ``config``.

    Args:
        config: what every trial starts from, as :func:`load_sweep` reads it. Each trial fits all its seeds.
        options: the sweep.
        resume: go on with the sweep that is in ``config.directory``: trials that have ended well are kept, others go
            on from their last checkpoint.
        address: of a running Ray cluster; None uses the session there is or starts an embedded one.

    Returns:
        How the trials ended, as in ``trials.parquet`` of ``config.directory``; beside it are ``config.yaml``,
        ``space.yaml``, ``trials/<trial>/seed-<seed>/``, and ``best/`` if any trial has finished. When the sweep is
        interrupted the table and the best so far are there, too.

    Raises:
        InputError: configuration, space and store do not fit together, the directory is in the way or cannot be
            resumed, or the cluster is too small for one trial.
        RunError: another process is at work on the sweep.
    """
    if not isinstance(config.out, Path):
        raise InputError(
            f"out={config.out}: a sweep's trials go on from their checkpoints on any host, so they are kept in a "
            f"directory that all hosts share; set out to a path of one"
        )
    go_on = "trials and checkpoints are kept: go on with --resume"
    with sole_user(config.directory, refuse_second), translated_ray_errors(str(config.directory), go_on):
        store = GraphStore.open(config.store)
        points = known_points(options)
        _check(config, options, store, points or corners(options))
        check_trackers(config.tracking)
        _check_directory(config, options, resume)
        priors = priors_needed(config, options, points)
        with worker_group_spec(config, store, priors, address, config.directory, of_sweep=True) as workers:
            dump_options(config, config.directory / "config.yaml")
            dump_options(options, config.directory / "space.yaml")
            return _search(TrialPlan(config, options, workers), points)


def _check(config: RunConfig, options: SweepOptions, store: GraphStore, points: list[Point]) -> None:
    """What a trial's workers check, before anything is started or written."""
    configs = [configure(config, point, source="space") for point in points]
    for variant in {
        c.model_dump_json(exclude={"regulariser", "optim", "train", "checkpoint"}): c for c in configs
    }.values():
        for seed in config.seeds:
            check_input(store, variant, seed)
    metrics = dict.fromkeys(name for c in configs for name in val_metrics_of(c.task))
    known = [*(f"val/{name}" for name in metrics), "seconds"]
    for metric in options.metrics:
        if metric not in known:
            raise InputError(f"metrics: unknown metric {metric!r}; known: {', '.join(known)}")
    scheduler = options.scheduler
    if scheduler.method == "none":
        return
    if "train.epochs" in options.space:
        raise InputError("space: train.epochs cannot be searched with scheduler.method=asha, which decides on epochs")
    if scheduler.grace < max(c.train.eval_every for c in configs):
        raise InputError(
            f"scheduler.grace={scheduler.grace} is before the first validation; let it be train.eval_every or more"
        )
    if not scheduler.milestones(_last_epoch(config)):
        raise InputError(
            f"scheduler.grace={scheduler.grace} is not below the {_last_epoch(config)} epochs of a trial, so asha "
            f"would stop nothing; lower it, or use method: none"
        )


def _last_epoch(config: RunConfig) -> int:
    return config.train.epochs * len(config.seeds)


def _check_directory(config: RunConfig, options: SweepOptions, resume: bool) -> None:
    """Refuse a directory that is in the way, that holds another sweep, or whose state others may have written."""
    directory = config.directory
    if not resume:
        check_free(directory, directory)
        return
    if not (directory / "space.yaml").exists():
        raise InputError(f"{directory}: no sweep to resume here; leave out --resume to start one")
    places = {"workers", "checkpoint", "out"}
    started = load_options(RunConfig, directory / "config.yaml")
    if started.model_dump(mode="json", exclude=places) != config.model_dump(mode="json", exclude=places):
        raise InputError(
            f"{directory}/config.yaml: the sweep was started with another configuration; resume with the same one, or "
            f"choose another name=..."
        )
    # How long it may take, and how much of it runs at a time.
    pace: Any = {"search": {"time_budget_s", "concurrency"}}
    begun = load_options(SweepOptions, directory / "space.yaml")
    if begun.model_dump(mode="json", exclude=pace) != options.model_dump(mode="json", exclude=pace):
        raise InputError(
            f"{directory}/space.yaml: the sweep was started with another space; resume with the same one, or choose "
            f"another name=..."
        )
    state = directory / _STATE
    if state.exists():
        status = state.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022 or state.is_symlink():
            # Tune unpickles what lies there, which can run any code.
            raise InputError(
                f"{state}: others can write to this directory, and resuming would run code that they leave there; if "
                f"you trust what is in it: chown -R $USER {state} && chmod -R go-w {state}"
            )


def _search(plan: TrialPlan, points: list[Point] | None) -> list[TrialRow]:
    config, options = plan.config, plan.options
    state = config.directory / _STATE
    state.mkdir(mode=0o700, exist_ok=True)
    # The views tell how a sweep goes; Tune's own tables, warnings and log files per trial are not wanted.
    quiet = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0"}
    os.environ.update(quiet)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    workers = plan.workers
    # Each place for a trial is one run of Ray Train, whose workers are placed by itself.
    room = Cluster.current().groups(workers.bundle, workers.options.count, num_trials(options))
    concurrency = min(room, options.search.concurrency or room)
    # The trial's own actor only waits, and needs no CPU that its workers could use.
    place = tune.PlacementGroupFactory([{"memory": 1}])
    scheduler = make_scheduler(options, _last_epoch(config))
    with SweepView(options, num_trials(options), len(config.seeds)) as view:
        follower = Follower(plan, view, scheduler)

        def run() -> None:
            analysis = tune.run(
                tune.with_resources(tune.with_parameters(SweepTrial, plan=plan), place),
                **search_arguments(config, options, points, concurrency),
                name=_STATE,
                storage_path=str(config.directory),
                scheduler=scheduler,
                callbacks=[follower],
                max_failures=config.workers.max_failures,
                reuse_actors=True,
                raise_on_failed_trial=False,
                resume="AUTO+ERRORED" if any(state.glob("experiment_state-*")) else None,
                trial_dirname_creator=lambda trial: trial.trial_id,
                verbose=0,
            )
            # Where there was nothing left to do there was no step either.
            follower.follow(analysis.trials)

        try:
            _on_a_thread(run, interrupt=lambda: setattr(follower, "interrupted", True))
        except InterruptedError:
            if not follower.over_time:
                raise
        finally:
            # However it ends: what has been found until then is of use.
            rows = follower.rows
            if rows:
                write_table(rows, options, config.directory / "trials.parquet")
            if winner := best(rows, options):
                export_best(winner, config, plan_fits(config, winner.trial, winner.point), config.directory / "best")
    return follower.rows


def _on_a_thread(run: Callable[[], None], interrupt: Callable[[], None]) -> None:
    """On the main thread Tune takes Ctrl-C over and returns as if all were well."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def work() -> None:
        try:
            run()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        future.result()
    except KeyboardInterrupt:
        # A thread that went on would start Ray anew after this process has left it.
        interrupt()
        thread.join(timeout=_LEAVE_S)
        raise
