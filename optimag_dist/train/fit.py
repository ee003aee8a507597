"""Fits one model: one variant, one seed, on this process's rank. Knows torch.distributed, not Ray.

Everything random is a pure function of (seed, epoch, step, rank): a fit resumed from a checkpoint, which may lie within
an epoch, ends with the same weights, bit for bit on the CPU, as one that was never stopped.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from optimag_dist.files import sole_writer
from optimag_dist.integrity import write_record
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GraphDataSource
from optimag_dist.store import GraphStore
from optimag_dist.tasks import Evaluation, metric_of, monitor_of
from optimag_dist.tasks.task import Part
from optimag_dist.train.callback import Signal, SignalReducer, TrainerCallback, beats
from optimag_dist.train.checkpointer import Best, Checkpointer, Progress, barrier
from optimag_dist.train.exporter import Exporter
from optimag_dist.train.log import DIVERGED, RESULT, FitLog, read_result
from optimag_dist.train.parts import Fit, Parts, Worker, check_made_from, evaluate_part, joined
from optimag_dist.train.soundness import Soundness
from optimag_dist.types import Diverged
from optimag_dist.ufgw import REMEDIES

__all__ = ["Fit", "Worker", "run_fit", "try_fit"]

Batch = TypeVar("Batch")
# A sign of useless plans seen in more than this share of an epoch's transport problems is told with the result.
_WORTH_TELLING = 0.5
# Steps after which it is looked whether all is finite, which waits for the device.
_LOOK_EVERY = 64
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


class Trainer:
    """Trains the parts of a fit from where its progress stands.

    Args:
        progress: taken up from a checkpoint, or new; goes on with training.

    Attributes:
        stopped: the callback has stopped the fit.
    """

    def __init__(self, parts: Parts, progress: Progress, checkpointer: Checkpointer, callback: TrainerCallback) -> None:
        self.stopped = False
        self._parts, self._progress, self._checkpointer, self._callback = parts, progress, checkpointer, callback
        config = parts.fit.config
        self._config, self._monitor = config, monitor_of(config.task)
        remedy = f"training has diverged; lower optim.lr (now {config.optim.lr:g}) and train under another name"
        worker = parts.worker
        self._soundness = Soundness(
            parts.model.names, list(parts.tasks), parts.step_loss, worker.device, worker.world_size, remedy
        )

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end, one record per epoch; checkpoints on the way. Ends early, ``stopped``, if so asked."""
        progress, options = self._progress, self._config.train
        with SignalReducer(self._parts.worker.world_size) as signals:
            while progress.epoch < options.epochs and progress.evaluations_since_best < options.patience:
                self._train_epoch(signals)
                if self.stopped:
                    return
                record = self._end_epoch()
                last = progress.epoch == options.epochs
                if progress.epoch % options.eval_every == 0 or last:
                    record |= {f"val/{name}": value for name, value in self.validate().items()}
                yield record
                if progress.epoch % self._config.checkpoint.every == 0 or last:
                    self._save()

    def validate(self) -> dict[str, float]:
        """The metrics of the validation part; the weights are kept if they are the best so far."""
        metrics = joined(self.evaluate("val", "evaluate"))
        best, sign = self._progress.best.metrics, metric_of(self._monitor).sign
        if best is None or sign * metrics[self._monitor] > sign * best[self._monitor]:
            weights = {name: tensor.detach().clone() for name, tensor in self._parts.step_loss.state_dict().items()}
            self._progress.best = Best(metrics, self._progress.epoch - 1, weights)
            self._progress.evaluations_since_best = 0
        elif self._progress.epoch > self._config.regulariser.warm_up:
            self._progress.evaluations_since_best += 1
        return metrics

    def evaluate(self, part: Part, phase: str) -> dict[str, Evaluation]:
        """Every task's evaluation of a part with the present weights.

        Args:
            phase: that the callback is told of.
        """
        parts = self._parts
        parts.step_loss.eval()
        forward = parts.forward(beats(self._callback, phase, self._progress.epoch))
        try:
            return evaluate_part(part, parts.tasks, parts.heads, forward)
        except Diverged as error:
            raise Diverged(
                f"after epoch {self._progress.epoch}: {error} (optim.lr is {self._config.optim.lr:g})"
            ) from error

    def _train_epoch(self, signals: SignalReducer) -> None:
        """The steps from the position in the epoch to its end, or to a signal to stop."""
        self._parts.step_loss.train()
        epoch, totals = self._progress.epoch, self._progress.totals
        totals.start_clock()
        batches = self._parts.loader.epoch(self._parts.sources, epoch, first_step=totals.steps)
        with contextlib.closing(batches):
            for batch in self._beating(totals.timed(batches), totals.steps):
                self._callback.on_phase("step", epoch, batch.step)
                self._step(batch)
                if totals.steps % _LOOK_EVERY == 0:
                    self._soundness.check(epoch, batch.step)
                agreed = signals.reached()
                if agreed >= Signal.SAVE:
                    self._save()
                if agreed == Signal.STOP:
                    self.stopped = True
                    return
                signals.ask(self._signal())

    def _step(self, batch: Any) -> None:
        parts = self._parts
        batch = batch.to(parts.worker.device)
        # Dropout depends on the position alone, so a resumed fit draws what an unbroken one would have drawn.
        torch.manual_seed(_mix(parts.fit.seed, batch.epoch, batch.step, parts.worker.rank))
        parts.optimiser.zero_grad(set_to_none=True)
        loss, metrics, largest = parts.parallel(batch)
        loss.backward()
        if parts.share is not None:
            parts.share.settle(parts.worker.world_size)
        self._soundness.note(batch.step, metrics, largest)
        parts.optimiser.step()
        self._progress.totals.add(batch, metrics)

    def _signal(self) -> Signal:
        signal = self._callback.signal()
        return max(signal, Signal.SAVE) if self._checkpointer.due() else signal

    def _end_epoch(self) -> dict[str, Any]:
        """The epoch's record; the position moves on to the next epoch."""
        parts, progress = self._parts, self._progress
        # Waits for the device, as no step does.
        self._soundness.check(progress.epoch, progress.totals.steps - 1)
        metrics = progress.totals.of_all_ranks(parts.worker.device, parts.worker.world_size)
        record = metrics.record(progress.epoch, regularised=parts.aligned)
        record |= parts.share.take() if parts.share is not None else {}
        if parts.aligned:
            shown = [sign for sign, share in metrics.signs().items() if share > _WORTH_TELLING]
            progress.advice = [f"transport: {REMEDIES[sign]}" for sign in shown]
        progress.end_epoch(record, metrics.first_loss, parts)
        return record

    def _beating(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        """``batches``, with a beat before each is waited for."""
        remaining = iter(batches)
        for step in itertools.count(first):
            self._callback.on_phase("load", self._progress.epoch, step)
            batch = next(remaining, None)
            if batch is None:
                return
            yield batch

    def _save(self) -> None:
        self._callback.on_phase("save", self._progress.epoch, self._progress.totals.steps)
        self._soundness.check(self._progress.epoch, self._progress.totals.steps - 1)
        self._checkpointer.save(self._progress)


def _mix(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
