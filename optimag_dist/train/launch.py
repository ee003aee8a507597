"""The rim between a run's configuration and Ray: checks, PPR, worker group, results.

One ``TorchTrainer`` runs every fit of a run in turn, so that a comparison of variants over seeds pays once for starting
workers. What a fit leaves lies in its own directory and is all that resuming needs; Ray is told results, not weights.
"""

import concurrent.futures
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import ray.train.torch
import torch

from optimag_dist.files import atomic
from optimag_dist.options import dump_options, load_options
from optimag_dist.ppr import PPRArtefact, PPROptions, compute_ppr
from optimag_dist.ray_session import ensure_ray
from optimag_dist.sampling import GraphRows, SeedBatcher
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassification
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.log import read_records
from optimag_dist.train.options import RunConfig, fingerprint
from optimag_dist.train.owners import shard_owners
from optimag_dist.train.progress import ProgressView
from optimag_dist.types import InputError

_START_TIMEOUT_S = 300


def launch(config: RunConfig, *, resume: bool = False, address: str | None = None) -> Path:
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
    """
    store = GraphStore.open(config.store)
    fits = plan_fits(config)
    for fit in fits:
        # The same doors the workers go through, before anything is started or written.
        task = NodeClassification(store, fit.config.task, seed=fit.seed)
        SeedBatcher(task.train, store.num_nodes, None, fit.config.sampling, seed=fit.seed, fill=False)
    _check_directory(config, fits, resume)

    options = fits[0].config.train
    # An embedded session counts CPUs for bookkeeping alone: more workers than cores run, only slower.
    ensure_ray(address, num_cpus=max(len(os.sched_getaffinity(0)), options.workers * options.cpus_per_worker))
    use_gpu = _check_resources(options.workers, options.cpus_per_worker, options.device)
    prior_paths = _compute_priors(store, fits)
    # Absolute, so that a report finds the store from any working directory.
    saved = config.model_copy(update={"store": config.store.absolute(), "out": config.out.absolute()})
    dump_options(saved, config.directory / "config.yaml")
    with shard_owners(store, options.owners if options.placement == "sharded" else 0) as rows:
        results = _train(config, store, fits, prior_paths, rows, use_gpu)
    _write_tables(config.directory, fits, results)
    return config.directory


def plan_fits(config: RunConfig) -> list[Fit]:
    """Every variant with every seed, seeds outermost, so that a run cut short has whole comparisons."""
    variants = config.resolve()
    return [
        Fit(name, seed, variant, (config.directory / name / f"seed-{seed}").absolute())
        for seed in config.seeds
        for name, variant in variants.items()
    ]


def _check_directory(config: RunConfig, fits: list[Fit], resume: bool) -> None:
    """Refuse a run directory that is in the way, or that does not hold what is to be resumed."""
    directory, saved = config.directory, config.directory / "config.yaml"
    if resume:
        if not saved.exists():
            raise InputError(f"{directory}: no run to resume here; leave out --resume to start one")
        before = {(f.variant, f.seed): fingerprint(f.config, f.seed) for f in plan_fits(load_options(RunConfig, saved))}
        for fit in fits:
            known = before.get((fit.variant, fit.seed))
            if known is not None and known != fingerprint(fit.config, fit.seed):
                raise InputError(
                    f"{saved}: variant {fit.variant!r} was started with other options; resume with the same ones "
                    f"(train.epochs, train.workers and new seeds or variants may change), or train under another name"
                )
    elif directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"{directory}: there is a run here already; go on with it by --resume, or choose another name=..."
        )


def _check_resources(workers: int, cpus: int, device: str) -> bool:
    """Whether workers get GPUs. Ray Train would wait for ever for resources that no node has."""
    there = ray.cluster_resources()
    if there.get("CPU", 0) < workers * cpus:
        raise InputError(
            f"train.workers={workers} with cpus_per_worker={cpus} needs {workers * cpus} CPUs and the Ray cluster has "
            f"{there.get('CPU', 0):g}; lower them or add nodes"
        )
    gpus = there.get("GPU", 0)
    if device == "cuda" and gpus < workers:
        raise InputError(f"train.device=cuda needs {workers} GPUs and the Ray cluster has {gpus:g}; use device=cpu")
    return device == "cuda" or (device == "auto" and gpus >= workers)


def _compute_priors(store: GraphStore, fits: list[Fit]) -> dict[PPROptions, Path]:
    """One PPR artefact per distinct set of options, found or computed."""
    wanted = dict.fromkeys(fit.config.ppr for fit in fits if fit.config.needs_ppr)
    return {options: compute_ppr(store, options).path for options in wanted}


def _train(
    config: RunConfig,
    store: GraphStore,
    fits: list[Fit],
    priors: dict[PPROptions, Path],
    rows: GraphRows | None,
    use_gpu: bool,
) -> list[dict[str, Any]]:
    options = fits[0].config.train
    with ProgressView(len(fits)) as view:
        trainer = ray.train.torch.TorchTrainer(
            _worker_loop,
            train_loop_config={
                "fits": fits,
                "store": store.path.absolute(),
                "priors": priors,
                "rows": rows,
                "threads": options.cpus_per_worker,
                "board": view.board,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": options.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_START_TIMEOUT_S),
            run_config=ray.train.RunConfig(
                name="ray_train",
                storage_path=str(config.directory.absolute()),
                failure_config=ray.train.FailureConfig(max_failures=options.max_failures, controller_failure_limit=3),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        return _wait_for(trainer).return_value


def _wait_for(trainer: ray.train.torch.TorchTrainer) -> ray.train.Result:
    """``trainer.fit()`` on a thread: on the main thread Ray takes Ctrl-C over and exits as if all were well."""
    future: concurrent.futures.Future[ray.train.Result] = concurrent.futures.Future()

    def fit() -> None:
        try:
            future.set_result(trainer.fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    try:
        return future.result()
    except ray.train.WorkerGroupError as error:
        causes = {id(e): e for e in error.worker_failures.values()}
        for cause in causes.values():
            while cause.__cause__ is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if isinstance(cause, InputError):
                raise cause from error
        raise


def _worker_loop(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every fit in turn, on one rank."""
    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    store = GraphStore.open(config["store"])
    priors = {options: PPRArtefact.open(path) for options, path in config["priors"].items()}
    board = config["board"] if worker.rank == 0 else None
    results = []
    for fit in config["fits"]:

        def tell(record: dict[str, Any], fit: Fit = fit) -> None:
            if board is not None:
                board.epoch.remote(f"{fit.variant} seed {fit.seed}", record, fit.config.train.epochs)

        ppr = priors.get(fit.config.ppr) if fit.config.needs_ppr else None
        result = run_fit(fit, store, ppr, worker, tell, config["rows"])
        if board is not None:
            ray.get(board.finished.remote(result))
        ray.train.report(result)
        results.append(result)
    return results


def _write_tables(directory: Path, fits: list[Fit], results: list[dict[str, Any]]) -> None:
    """``results.parquet``: a row per fit; ``metrics.parquet``: a row per fit and epoch."""
    with atomic(directory / "results.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(results), temporary)
    epochs = [
        {"variant": fit.variant, "seed": fit.seed, **record}
        for fit in fits
        for record in read_records(fit.directory / "metrics.jsonl")
    ]
    columns = dict.fromkeys(name for row in epochs for name in row)
    with atomic(directory / "metrics.parquet") as temporary:
        pq.write_table(pa.table({c: [row.get(c) for row in epochs] for c in columns}), temporary)
