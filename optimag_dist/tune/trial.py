"""One trial as Ray Tune sees it: an actor that holds a group of workers and reports how far they are."""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from optimag_dist.tasks import monitor_of
from optimag_dist.train.board import Event
from optimag_dist.train.fit import Fit
from optimag_dist.train.log import in_one_line, read_records
from optimag_dist.train.options import RunConfig
from optimag_dist.train.worker_group import WorkerGroup, WorkerGroupSpec, WorkersLost
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.score import Score
from optimag_dist.tune.space import Point, configure
from optimag_dist.types import InputError, RunError

# Tune hears of a trial at the epochs at which it decides, and otherwise this often: each report costs the driver time.
_REPORT_S = 1.0


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share; paths are absolute."""

    config: RunConfig
    options: SweepOptions
    workers: WorkerGroupSpec


def trial_directory(config: RunConfig, trial: str) -> Path:
    """Where ``trial`` of the sweep has its fits, one ``seed-<seed>/`` each."""
    return config.directory / "trials" / trial


def plan_fits(config: RunConfig, trial: str, point: Point) -> list[Fit]:
    """The trial's fits in turn, one per seed; ``InputError`` where its configuration is not valid."""
    variant = configure(config, point, source=f"trial {trial}")
    directory = trial_directory(config, trial)
    return [Fit(trial, seed, variant, directory / f"seed-{seed}") for seed in config.seeds]


class RefusedError(RuntimeError):
    """A trial's input cannot be used; trying again would not help."""


class SweepTrial(tune.Trainable):
    """Trains one point after the other, with workers that stay.

    Neither setting up nor resetting may fail or take long, Tune would not try again: the work is in :meth:`step`.
    Tune needs no checkpoints of its own: a fit's directory has all, whichever actor goes on with it.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan) -> None:
        self._plan = plan
        self._group: WorkerGroup | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._group is not None:
            self._group.stop()
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._trial, self._point = config["chosen"]["trial"], config["chosen"]["point"]
        self._score: Score | None = None
        self._refusal: str | None = None
        self._events: deque[Event] = deque()

    def step(self) -> dict[str, Any]:
        """The state after some more epochs; ``done`` when all fits have ended.

        An input that is refused is reported as ``error`` first, so that who follows the sweep can see to it that the
        trial is not tried again, and raised in the next step.
        """
        if self._refusal is not None:
            raise RefusedError(self._refusal)
        try:
            if self._score is None:
                self._score = self._start()
            return self._progress(self._score)
        except InputError as error:
            self.cleanup()
            self._refusal = str(error)
            metrics = {name: float("nan") for name in self._plan.options.metrics}
            return {"epoch": 0, "epochs": 0, "seconds": 0.0, **metrics, "error": self._refusal}
        except Exception:
            self.cleanup()
            raise

    def _start(self) -> Score:
        fits = plan_fits(self._plan.config, self._trial, self._point)
        try:
            if self._group is not None:
                self._group.drain()
        except (WorkersLost, InputError, RunError):
            # What they were at before failed to stop, which is not this trial's fault.
            self.cleanup()
        if self._group is None:
            self._group = WorkerGroup(self._plan.workers)
            self._group.start()
        config = fits[0].config
        epochs = config.train.epochs
        self._milestones = self._plan.options.scheduler.milestones(epochs * len(fits))
        score = Score(tuple(fit.seed for fit in fits), epochs, monitor_of(config.task))
        for fit in fits:
            for record in read_records(fit.directory / "metrics.jsonl"):
                score.epoch(fit.seed, record)
        self._seeds = dict(zip(self._group.submit(fits), score.seeds, strict=True))
        return score

    def _progress(self, score: Score) -> dict[str, Any]:
        assert self._group is not None
        started = time.monotonic()
        before = score.clock
        while not score.finished:
            if not self._events:
                self._events.extend(self._group.events(_REPORT_S))
            while self._events:
                kind, number, content = self._events.popleft()
                if kind == "result":
                    score.results[self._seeds[number]] = content
                elif kind == "epoch":
                    score.epoch(self._seeds[number], content)
                    if any(before < milestone <= score.clock for milestone in self._milestones):
                        return self._report(score)
            if score.clock > before and time.monotonic() - started > _REPORT_S:
                break
        return self._report(score)

    def _report(self, score: Score) -> dict[str, Any]:
        return {
            "epoch": score.clock,
            "epochs": score.epochs,
            **score.metrics(["seconds", *self._plan.options.metrics]),
            "fits": {seed: in_one_line(result) for seed, result in score.results.items()},
            "finished": score.finished and score.diverged is None,
            "diverged": score.diverged,
            "done": score.finished,
        }

    def cleanup(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.stop()
            group.close(self._plan.workers.options.stall_timeout_s)
