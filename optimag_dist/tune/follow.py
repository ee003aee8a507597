"""Follows a sweep while it runs: Tune's trials as rows, kept in ``trials.parquet`` and shown in the terminal."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from optimag_dist.tune.results import Status, TrialRow, write_table
from optimag_dist.tune.space import Point, configure, values_of
from optimag_dist.tune.trial import TrialPlan
from optimag_dist.tune.view import SweepView
from optimag_dist.types import InputError

_REDRAW_S = 0.5


class Follower(tune.Callback):
    """Holds the rows of the trials that there are so far; also keeps the scheduler's memory for a resumed sweep.

    Set ``interrupted`` to have the sweep end at its next step. When ``search.time_budget_s`` is over it ends, too:
    Tune's own budget ends trials for good, so that nothing would go on with them.
    """

    def __init__(self, plan: TrialPlan, view: SweepView, scheduler: TrialScheduler) -> None:
        self._plan, self._view, self._scheduler = plan, view, scheduler
        self._values: dict[str, Point] = {}
        self._ended: dict[str, str] = {}
        self._drawn = 0.0
        self._began = time.monotonic()
        self.rows: list[TrialRow] = []
        self.interrupted = False

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        trial.max_failures = self._plan.config.workers.max_failures

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "error" in result:
            # An input was refused, and would be again.
            trial.max_failures = 0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.interrupted or self.over_time:
            raise InterruptedError("the sweep is left")
        self.follow(trials)

    @property
    def over_time(self) -> bool:
        """Whether the sweep has taken the time it is given."""
        budget = self._plan.options.search.time_budget_s
        return budget is not None and time.monotonic() - self._began > budget

    def follow(self, trials: list[Trial]) -> None:
        """The table is written whenever a trial has ended, the view drawn a few times a second."""
        ended = {t.trial_id: t.status for t in trials if t.status in (Trial.TERMINATED, Trial.ERROR)}
        if ended == self._ended and time.monotonic() - self._drawn < _REDRAW_S:
            return
        self.rows = sorted((self._row(trial) for trial in trials), key=lambda row: row.trial)
        if ended != self._ended:
            write_table(self.rows, self._plan.options, self._plan.config.directory / "trials.parquet")
        nodes = sum(node["Alive"] for node in ray.nodes())
        self._view.update(self.rows, nodes, ray.cluster_resources().get("CPU", 0))
        self._ended, self._drawn = ended, time.monotonic()

    def _row(self, trial: Trial) -> TrialRow:
        name, point = trial.config["chosen"]["trial"], trial.config["chosen"]["point"]
        last = trial.last_result or {}
        if name not in self._values:
            self._values[name] = point
            with contextlib.suppress(InputError):
                self._values[name] = point | values_of(configure(self._plan.config, point, "trial"), list(point))
        return TrialRow(
            trial=name,
            status=_status(trial, last),
            epochs=last.get("epochs", 0),
            seconds=last.get("seconds", 0.0),
            point=point,
            values=self._values[name],
            metrics={metric: last[metric] for metric in self._plan.options.metrics if metric in last},
            error=last.get("error", _last_error(trial)) if trial.status == Trial.ERROR else last.get("diverged"),
            fits=last.get("fits", {}),
        )

    def get_state(self) -> dict[str, Any]:
        if self._plan.options.scheduler.method == "none":
            return {}
        with tempfile.NamedTemporaryFile() as file:
            self._scheduler.save(file.name)
            return {"scheduler": file.read()}

    def set_state(self, state: dict[str, Any]) -> None:
        if "scheduler" in state:
            with tempfile.NamedTemporaryFile() as file:
                file.write(state["scheduler"])
                file.flush()
                self._scheduler.restore(file.name)


def _status(trial: Trial, last: dict[str, Any]) -> Status:
    if trial.status == Trial.ERROR:
        return "failed"
    if trial.status == Trial.TERMINATED:
        return "diverged" if last.get("diverged") else "finished" if last.get("finished") else "stopped"
    return "running" if trial.status == Trial.RUNNING else "pending"


def _last_error(trial: Trial) -> str:
    """One line of what Tune has kept of the last failure."""
    text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    # An exception of the trial's own ends with its message; that an actor died is said first.
    return lines[-1 if "ray::" in text else 0]
