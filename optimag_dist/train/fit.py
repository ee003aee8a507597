"""Fits one model: one variant, one seed, on this process's rank. Knows torch.distributed, not Ray."""

import contextlib
from typing import Any

from optimag_dist.files import sole_writer
from optimag_dist.integrity import write_record
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GraphDataSource
from optimag_dist.store import GraphStore
from optimag_dist.train.callback import TrainerCallback
from optimag_dist.train.checkpointer import Checkpointer, barrier
from optimag_dist.train.exporter import Exporter
from optimag_dist.train.log import DIVERGED, RESULT, FitLog, read_result
from optimag_dist.train.parts import Fit, Parts, Worker, check_made_from
from optimag_dist.train.trainer import Trainer
from optimag_dist.types import Diverged

__all__ = ["Fit", "Worker", "run_fit", "try_fit"]

# The workers of a driver that was killed end within seconds; a network drive notices later that a host is gone.
_LEAVE_S = 120.0


def run_fit(
    fit: Fit,
    store: GraphStore,
    ppr: PPRArtefact | None,
    worker: Worker,
    callback: TrainerCallback | None = None,
    rows: GraphDataSource | None = None,
) -> dict[str, Any] | None:
    """Train, choose the best epoch on the validation nodes, test it, and leave the files behind.

    A finished fit is not repeated; an unfinished one goes on from its checkpoint.

    Args:
        fit, store: what to train on what; every rank gets the same.
        ppr: may be None where it is not needed.
        worker: this process's rank; with more than one, torch.distributed must be initialised.
        callback: is told how the fit goes and may ask it to save or to stop.
        rows: where neighbours and features come from; default: the store, mapped on this host.

    Returns:
        The content of ``result.json``, the same on every rank. None where the callback has stopped the fit before its
        last step; another call goes on from there.

    Raises:
        Diverged: a loss, a gradient, a weight or what is evaluated is no longer finite, on all ranks alike. Nothing of
            it is kept: not as the best weights, not in a checkpoint.
    """
    callback = callback or TrainerCallback()
    finished = fit.directory / RESULT
    if finished.exists():
        known = read_result(fit.directory) or {}
        check_made_from(finished, known, fit, store)
        return known
    parts = Parts(fit, store, ppr, worker, rows)
    checkpointer = Checkpointer(parts, callback)
    progress = checkpointer.resume()
    trainer = Trainer(parts, progress, checkpointer, callback)
    with FitLog(fit.directory, progress.epoch) if worker.rank == 0 else contextlib.nullcontext() as log:
        for record in trainer.epochs():
            if log is not None:
                log.write(record)
                callback.on_save(log.path)
            callback.on_epoch_end(record)
    if trainer.stopped:
        return None
    if progress.best.weights is None:
        # Resumed with fewer epochs than the first evaluation waits for.
        trainer.validate()
    parts.step_loss.load_state_dict(progress.best.weights or {})
    result = Exporter(parts, callback).export(progress, trainer.evaluate("test", "test"))
    if worker.rank == 0:
        write_record(finished, result)
        callback.on_save(finished)
    barrier(worker)
    return result


def try_fit(
    fit: Fit,
    store: GraphStore,
    ppr: PPRArtefact | None,
    worker: Worker,
    callback: TrainerCallback,
    rows: GraphDataSource | None = None,
) -> dict[str, Any] | None:
    """:func:`run_fit` among others that go on when this one diverges.

    Returns:
        The result, or, on every rank, what is also in ``diverged.json``: variant, seed, and what happened. A diverged
        fit is not finished: another call goes on from its last checkpoint.

    Raises:
        TimeoutError: workers of an earlier attempt (their driver was killed) are at work on the fit and do not end.
    """
    path = fit.directory / DIVERGED
    with sole_writer(fit.directory, patience_s=_LEAVE_S) if worker.rank == 0 else contextlib.nullcontext():
        # No rank may read what those of an earlier attempt are still writing.
        barrier(worker)
        try:
            result = run_fit(fit, store, ppr, worker, callback, rows)
        except Diverged as error:
            result = {"variant": fit.variant, "seed": fit.seed, "diverged": str(error)}
            if worker.rank == 0:
                write_record(path, result)
                callback.on_save(path)
            return result
        if worker.rank == 0:
            path.unlink(missing_ok=True)
        return result
