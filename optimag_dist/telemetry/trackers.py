"""MLflow and Weights & Biases, told of a fit by a thread of their own.

A tracker may be slow, or away: training does not wait for it, and a tracker that fails is told no more and mentioned
once.
"""

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimag_dist.files import atomic
from optimag_dist.telemetry.options import TrackingOptions

# How long the end of a fit waits for what its trackers have not been told yet.
_DRAIN_S = 30.0
# MLflow takes at most this many parameters in a request, and values of this length.
_BATCH, _LONGEST = 100, 6000


class Trackers:
    """Opens a run in every tracker at the first epoch that it is told of; a fit that goes on goes on with its runs.

    Args:
        group: what the fit's run belongs to: MLflow's experiment, the group in Weights & Biases.
        directory: of the fit; ``tracking.json`` there keeps the runs' ids.
        say: called, on the thread, with a line for people when a tracker fails.
    """

    def __init__(
        self, options: TrackingOptions, *, group: str, name: str, directory: Path, say: Callable[[str], None]
    ) -> None:
        self.options, self.group, self.name, self.directory, self._say = options, group, name, directory, say
        self._open: dict[str, _MLflow | _Wandb] = {}
        self._messages: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._epoch = -1
        self._finished = False

    def epoch(self, record: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """An epoch's record; ``params``, the fit's configuration, is told to runs that are opened by it."""
        if self.options.mlflow is None and self.options.wandb is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell, args=(params,), daemon=True)
            self._thread.start()
        self._epoch = record["epoch"]
        self._messages.put((_numbers(record), self._epoch))

    def finished(self, result: Mapping[str, Any]) -> None:
        """The fit's result."""
        self._finished = True
        if self._thread is not None:
            self._messages.put((_numbers(result), self._epoch))

    def close(self) -> None:
        """Wait, for a bounded time, until the trackers have been told all."""
        if self._thread is not None:
            self._messages.put(None)
            self._thread.join(_DRAIN_S)
            if self._thread.is_alive():
                self._say(f"the trackers of {self.name} have not taken all within {_DRAIN_S:g} s; going on")
            self._thread = None

    def _tell(self, params: Mapping[str, Any]) -> None:
        ids = self.directory / "tracking.json"
        known = json.loads(ids.read_text(encoding="utf-8")) if ids.exists() else {}
        for name, tracker in (("mlflow", _MLflow), ("wandb", _Wandb)):
            if getattr(self.options, name) is not None:
                with self._mentioned(name):
                    self._open[name] = tracker(self, params, known.get(name))
        known |= {name: run.id for name, run in self._open.items()}
        with atomic(ids) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
        while (message := self._messages.get()) is not None:
            for name, run in list(self._open.items()):
                with self._mentioned(name):
                    run.log(*message)
        for name, run in list(self._open.items()):
            with self._mentioned(name):
                run.end(finished=self._finished)

    @contextmanager
    def _mentioned(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self._say(f"{name} is not told of {self.name} any more, training goes on: {type(error).__name__}: {error}")


class _MLflow:
    """One run in the experiment that has the name of the optimag run."""

    def __init__(self, fit: Trackers, params: Mapping[str, Any], known: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=fit.options.mlflow)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self.id = known
            return
        there = self._client.get_experiment_by_name(fit.group)
        place = there.experiment_id if there is not None else self._client.create_experiment(fit.group)
        self.id = self._client.create_run(place, run_name=fit.name).info.run_id
        flat = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(params)]
        for start in range(0, len(flat), _BATCH):
            self._client.log_batch(self.id, params=flat[start : start + _BATCH])

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.id, [self._metric(name, value, now, epoch) for name, value in metrics.items()])

    def end(self, *, finished: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class _Wandb:
    """One run in a group that has the name of the optimag run."""

    def __init__(self, fit: Trackers, params: Mapping[str, Any], known: str | None) -> None:
        import wandb

        self.id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=fit.options.wandb,
            group=fit.group,
            name=fit.name,
            id=self.id,
            resume="allow",
            config=dict(params),
            dir=str(fit.directory),
            mode="offline" if fit.options.wandb_offline else None,
            # Fits follow one another in one process, and terminals show the run's own progress.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._run.log({**metrics, "epoch": epoch}, step=epoch)

    def end(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in record.items() if isinstance(value, int | float)}


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
