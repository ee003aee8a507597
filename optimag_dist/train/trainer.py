"""The training loop.

Everything random is a pure function of (seed, epoch, step, rank): a fit resumed from a checkpoint, which may lie within
an epoch, ends with the same weights, bit for bit on the CPU, as one that was never stopped.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from optimag_dist.tasks import Evaluation, metric_of, monitor_of
from optimag_dist.tasks.task import Part
from optimag_dist.train.callback import Signal, TrainerCallback
from optimag_dist.train.checkpointer import Best, Checkpointer, Progress
from optimag_dist.train.evaluation import evaluate_part, joined
from optimag_dist.train.parts import Parts
from optimag_dist.train.soundness import Soundness
from optimag_dist.types import Diverged
from optimag_dist.ufgw import REMEDIES

Batch = TypeVar("Batch")
# A sign of useless plans seen in more than this share of an epoch's transport problems is told with the result.
_WORTH_TELLING = 0.5
# Steps after which it is looked whether all is finite, which waits for the device.
_LOOK_EVERY = 64


class SignalReducer:
    """The greatest of all ranks' signals, known one step after it was asked for; use as a context manager.

    The exchange is a reduction of one integer that runs while the next step is computed, over a CPU group of its own,
    so that a GPU is not waited for. Every rank makes the same calls in the same order.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._signal = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def __enter__(self) -> "SignalReducer":
        self._group = dist.new_group(backend="gloo") if self._world_size > 1 else None
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After an error the other ranks may never answer.
        if self._group is not None and error is None:
            self.reached()
            dist.destroy_process_group(self._group)

    def ask(self, signal: Signal) -> None:
        """Tell the other ranks of this rank's signal."""
        self._signal.fill_(signal)
        if self._group is not None:
            self._work = dist.all_reduce(self._signal, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def reached(self) -> Signal:
        """What was asked last, by any rank; each signal is told once."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        signal = Signal(int(self._signal))
        self._signal.zero_()
        return signal


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
        else:
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
        with closing(batches):
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
        record = metrics.record(progress.epoch, regularised=parts.regulariser is not None)
        if parts.regulariser is not None:
            shown = [sign for sign, share in metrics.signs().items() if share > _WORTH_TELLING]
            progress.advice = [f"transport: {REMEDIES[sign]}" for sign in shown]
        progress.end_epoch(record["loss"], metrics.first_loss, parts)
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


def beats(callback: TrainerCallback, phase: str, epoch: int) -> Callable[[], None]:
    """Tells ``callback``, each time it is called, that ``phase`` has got one further."""
    steps = itertools.count()
    return lambda: callback.on_phase(phase, epoch, next(steps))


def _mix(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
