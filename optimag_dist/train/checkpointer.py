"""How far a fit has come, saved and taken up again."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from optimag_dist.train import checkpoint
from optimag_dist.train.callback import TrainerCallback
from optimag_dist.train.epoch import EpochTotals
from optimag_dist.train.parts import Parts, Worker, check_made_from, made_from
from optimag_dist.types import InputError

# Of a fit's progress: what a checkpoint holds as it is.
_PLAIN = ("epoch", "evaluations_since_best", "advice", "losses")


@dataclass(frozen=True)
class Best:
    """The best weights so far, of all that is trained; metrics of the validation part, None before it was evaluated."""

    metrics: dict[str, float] | None = None
    epoch: int = -1
    weights: dict[str, Tensor] | None = None


@dataclass
class Progress:
    """How far a fit has come, its weights and the optimiser's state aside.

    Attributes:
        totals: of the epoch it is in.
        epoch: that it is in, from 0.
        advice: sentences about the last epoch's transport problems.
        losses: ``first``, of the first step; ``largest``, of an epoch, and which ``epoch`` that was; ``task_first`` and
            ``task_last``, the task's own, of the first epoch and the last.
    """

    totals: EpochTotals
    epoch: int = 0
    best: Best = Best()
    evaluations_since_best: int = 0
    advice: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=lambda: {"first": 0.0, "largest": 0.0, "epoch": 0})

    @classmethod
    def start(cls, parts: Parts) -> "Progress":
        return cls(EpochTotals(parts.step_loss.ufgw_time))

    def end_epoch(self, record: Mapping[str, Any], first_loss: float, parts: Parts) -> None:
        """Go on to the next epoch after one with this ``record`` and the loss of its first step."""
        loss = record["loss"]
        if self.epoch == 0:
            self.losses |= {"first": first_loss, "task_first": record["task_loss"]}
        self.losses["task_last"] = record["task_loss"]
        if loss > self.losses["largest"]:
            self.losses |= {"largest": loss, "epoch": self.epoch}
        self.epoch += 1
        self.totals = EpochTotals(parts.step_loss.ufgw_time)


class Checkpointer:
    """Saves a fit to its ``checkpoint.pt``, and takes it up from there."""

    def __init__(self, parts: Parts, callback: TrainerCallback) -> None:
        self._parts, self._callback = parts, callback
        self._path = parts.fit.directory / "checkpoint.pt"
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is so old that this rank asks for another."""
        age = time.monotonic() - self._saved_at
        return self._parts.worker.rank == 0 and age > self._parts.fit.config.checkpoint.every_s

    def resume(self) -> Progress:
        """The progress of the fit's checkpoint, whose weights and optimiser's state it puts into the parts; that of a
        new fit where there is none. ``InputError``: it is damaged, or of another configuration, seed or graph."""
        parts, path = self._parts, self._path
        progress = Progress.start(parts)
        if not path.exists():
            return progress
        state = checkpoint.load(path, parts.worker.device)
        check_made_from(path, state, parts.fit, parts.store)
        start_over = f"delete {parts.fit.directory} to start over"
        if not (state.get("weights") or {}).keys() >= parts.step_loss.state_dict().keys():
            # What is finished can be converted; of half a fit the optimiser's state would not fit.
            raise InputError(
                f"{path}: made by an earlier version of optimag_dist, whose models read features in another way; train "
                f"under another name, or {start_over}"
            )
        checkpoint.put(parts.step_loss, state.get("weights"), f"{path}: its weights")
        try:
            parts.optimiser.load_state_dict(state["optimiser"])
            progress = replace(progress, best=Best(**state["best"]), **{name: state[name] for name in _PLAIN})
            if state["totals"] is not None:
                progress.totals.restore(state["totals"], parts.worker.rank, parts.worker.world_size)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: is not whole ({error!r}); {start_over}") from error
        return progress

    def save(self, progress: Progress) -> None:
        """Write the checkpoint; no rank runs ahead of it."""
        parts, totals = self._parts, progress.totals
        of_epoch = totals.state(parts.worker.device, parts.worker.world_size) if totals.steps else None
        if parts.worker.rank == 0:
            state: dict[str, Any] = {
                **made_from(parts.fit, parts.store),
                "weights": parts.step_loss.state_dict(),
                "optimiser": parts.optimiser.state_dict(),
                "totals": of_epoch,
                "best": vars(progress.best),
                **{name: getattr(progress, name) for name in _PLAIN},
            }
            checkpoint.save(self._path, state)
            self._callback.on_save(self._path)
        barrier(parts.worker)
        self._saved_at = time.monotonic()


def barrier(worker: Worker) -> None:
    if worker.world_size > 1:
        dist.barrier()
