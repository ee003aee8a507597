"""A trial's workers: a DDP process group that stays warm from trial to trial.

Starting workers costs seconds (imports, compiled kernels, the process group); a sweep of short trials would spend more
on that than on training. So the workers of a place in the cluster are started once and fit one trial after the other.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import ray
import torch
import torch.distributed as dist

from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.sampling import GraphRows
from optimag_dist.storage import AnyPath
from optimag_dist.store import GraphStore
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.train.fit import Fit, Worker, try_fit
from optimag_dist.train.guard import kill_worker
from optimag_dist.train.host import Wish
from optimag_dist.train.log import read_records
from optimag_dist.train.ray_host import RayHost
from optimag_dist.train.telemetry import telling
from optimag_dist.train.watch import Beat, Watch
from optimag_dist.types import InputError

# Calls that a worker answers at a time: fit, news, sign, beat (its own) and stop.
_CONCURRENCY = 5
_GRACE_S = 60
# After one worker has failed the others are heard for this long: the first error is often only the echo of another's.
_ECHO_S = 5


@dataclass(frozen=True)
class Crew:
    """What every gang of a sweep is made of.

    Attributes:
        workers: DDP workers of a trial.
        cpus: of each worker, which are also its threads.
        use_gpu: each worker has a GPU.
        store: directory or URI of the graph store.
        priors: the PPR artefact's directory for every set of options that a trial may have.
        rows: where neighbours and features come from; None maps the store.
        sweep: its name.
        tracking: who is told of every fit.
        start_timeout_s, stall_timeout_s: see :class:`~optimag_dist.train.options.TrainOptions`.
    """

    workers: int
    cpus: int
    use_gpu: bool
    store: AnyPath
    priors: dict[PPROptions, AnyPath]
    rows: GraphRows | None
    sweep: str
    tracking: TrackingOptions
    start_timeout_s: float
    stall_timeout_s: float

    @property
    def bundle(self) -> dict[str, float]:
        """A worker's resources."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.use_gpu else {})}


class News(NamedTuple):
    """What rank 0 tells: an ``epoch``'s record, or a fit's ``result``."""

    kind: Literal["epoch", "result"]
    seed: int
    content: dict[str, Any]


class GangWorker:
    """One rank; runs as a Ray actor."""

    def __init__(self, crew: Crew, rank: int) -> None:
        self._crew, self._rank = crew, rank
        self._news: list[News] = []
        self._changed = threading.Condition()
        self._beat: Beat | None = None
        self._run = self._stopped = 0

    def listen(self) -> tuple[str, int]:
        """Open the meeting point of the ranks on this host; its address and port."""
        self._meeting = dist.TCPStore(
            ray.util.get_node_ip_address(), 0, self._crew.workers, is_master=True, wait_for_workers=False
        )
        return self._meeting.host, self._meeting.port

    def join(self, host: str, port: int) -> None:
        """Form the process group with the other ranks."""
        if self._rank > 0:
            self._meeting = dist.TCPStore(host, port, self._crew.workers, is_master=False, wait_for_workers=False)
        self._device = torch.device("cuda", 0) if self._crew.use_gpu else torch.device("cpu")
        dist.init_process_group(
            "nccl" if self._crew.use_gpu else "gloo",
            store=self._meeting,
            rank=self._rank,
            world_size=self._crew.workers,
            # Collectives wait for a stuck rank until it has been named and killed.
            timeout=timedelta(seconds=self._crew.stall_timeout_s + self._crew.start_timeout_s + _GRACE_S),
        )
        self._store = GraphStore.open(self._crew.store)
        self._priors = {options: PPRArtefact.open(path) for options, path in self._crew.priors.items()}

    def fit(self, run: int, fits: Sequence[Fit]) -> str | None:
        """Run ``fits`` in turn, as far as :meth:`stop` lets them; run numbers rise from 1.

        Returns:
            Why an input was refused, or None. No other attempt would end otherwise, so that is no failure.
        """
        # A thread's own setting, and Ray may give every call another thread.
        torch.set_num_threads(self._crew.cpus)
        with self._changed:
            self._run, self._news, self._beat = run, [], None
        worker = Worker(self._rank, self._crew.workers, self._device)
        with _GangHost(self, self._rank, self._crew.stall_timeout_s) as host:
            for fit in fits:
                host.begin(fit)
                if self._rank == 0:
                    for record in read_records(fit.directory / "metrics.jsonl"):
                        self.tell(News("epoch", fit.seed, record))
                ppr = self._priors.get(fit.config.ppr) if fit.config.needs_ppr else None
                try:
                    with telling(host, fit, self._rank, run=self._crew.sweep, tracking=self._crew.tracking) as told:
                        result = try_fit(fit, self._store, ppr, worker, told, self._crew.rows)
                except InputError as error:
                    return str(error)
                if result is None:
                    return None
                self.tell(News("result", fit.seed, result))
            host.done()
        return None

    def tell(self, news: News) -> None:
        """Have ``news`` for who asks."""
        with self._changed:
            self._news.append(news)
            self._changed.notify_all()

    def news(self, run: int, seen: int, patience_s: float) -> list[News]:
        """News of ``run`` after the first ``seen``; waits at most ``patience_s`` for some."""
        with self._changed:
            self._changed.wait_for(lambda: self._run == run and len(self._news) > seen, patience_s)
            return self._news[seen:] if self._run == run else []

    def beat(self, beat: Beat) -> None:
        """A sign of life of this worker's own fit."""
        self._beat = beat

    def sign(self, run: int) -> Beat | None:
        """The last sign of life in ``run``."""
        return self._beat if self._run == run else None

    def stop(self, run: int) -> None:
        """Have ``run`` write a checkpoint and end at its next step."""
        self._stopped = max(self._stopped, run)

    @property
    def stopped(self) -> bool:
        """Whether the present run is to end."""
        return self._stopped >= self._run


class _GangHost(RayHost):
    """The worker's own actor is the board on which its fit's signs of life are kept."""

    def __init__(self, worker: GangWorker, rank: int, stall_timeout_s: float) -> None:
        super().__init__(ray.get_runtime_context().current_actor, rank, stall_timeout_s)
        self._worker = worker

    def epoch(self, record: dict[str, Any]) -> None:
        if self._rank == 0 and self._fit is not None:
            self._worker.tell(News("epoch", self._fit.seed, record))

    def wish(self) -> Wish:
        return Wish.STOP if self._worker.stopped else super().wish()


class GangError(RuntimeError):
    """A worker has died or failed; the gang is gone, and a new one goes on from the last checkpoint."""


class Gang:
    """Starts the workers in the bundles of the placement group this actor is in, one in each.

    Raises:
        GangError: a worker has not come up within the crew's ``start_timeout_s``.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        group = ray.util.get_current_placement_group()
        self._workers: list[Any] = [
            ray.remote(GangWorker)
            .options(
                num_cpus=crew.bundle["CPU"],
                num_gpus=crew.bundle.get("GPU", 0),
                max_concurrency=_CONCURRENCY,
                scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, rank),
            )
            .remote(crew, rank)
            for rank in range(crew.workers)
        ]
        self._run = self._seen = 0
        self._fitting: list[ray.ObjectRef] = []
        meeting = self._answers([self._workers[0].listen.remote()], crew.start_timeout_s)[0]
        self._answers([worker.join.remote(*meeting) for worker in self._workers], crew.start_timeout_s)

    def start(self, fits: Sequence[Fit]) -> None:
        """Let the workers run ``fits``, after what they are at; raises GangError if that fails."""
        self.stop()
        self._answers(self._fitting, self._crew.stall_timeout_s)
        self._run, self._seen = self._run + 1, 0
        self._fitting = [worker.fit.remote(self._run, fits) for worker in self._workers]
        self._watch = Watch(self._crew.workers, self._crew.start_timeout_s, self._crew.stall_timeout_s)
        self._signs = {worker.sign.remote(self._run): worker for worker in self._workers}

    def news(self, patience_s: float) -> list[News]:
        """What rank 0 has told since the last call; waits at most ``patience_s``.

        Raises:
            GangError: a worker has failed, died or does not get on; all are gone then.
            InputError: a worker has refused its input; all are gone then too.
        """
        # What has ended before the question was asked has told everything when it is answered.
        ended, running = ray.wait(self._fitting, num_returns=len(self._fitting), timeout=0)
        if running:
            self._guard()
        asked = self._workers[0].news.remote(self._run, self._seen, patience_s)
        answered, _ = ray.wait([asked], timeout=patience_s + 1)
        if not answered:
            # Rank 0 does not speak: the watch says when that is too long.
            return []
        told = self._answers(answered, _GRACE_S)[0]
        self._seen += len(told)
        for refusal in filter(None, self._answers(ended, _GRACE_S)):
            self.kill()
            raise InputError(refusal)
        return told

    def _guard(self) -> None:
        answered, _ = ray.wait(list(self._signs), num_returns=len(self._signs), timeout=0)
        for reference in answered:
            worker = self._signs.pop(reference)
            (beat,) = self._answers([reference], _GRACE_S)
            if beat is not None:
                self._watch.hear(beat)
            self._signs[worker.sign.remote(self._run)] = worker
        verdict = self._watch.verdict()
        if verdict is not None:
            for beat in verdict.stuck:
                kill_worker(beat)
            self.kill()
            raise GangError(str(verdict))

    def stop(self) -> None:
        """Have the workers end what they are at, with a checkpoint, at their next step; does not wait for it."""
        for worker in self._workers:
            worker.stop.remote(self._run)

    def close(self) -> None:
        """Stop, wait for the checkpoint, and end the workers."""
        self.stop()
        if self._fitting:
            ray.wait(self._fitting, num_returns=len(self._fitting), timeout=self._crew.stall_timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the workers as they are."""
        for worker in self._workers:
            ray.kill(worker)

    def _answers(self, asked: list[ray.ObjectRef], timeout_s: float) -> list[Any]:
        if not asked:
            return []
        try:
            return ray.get(asked, timeout=timeout_s)
        except ray.exceptions.RayError as error:
            failure = self._first_failure(asked) or error
            self.kill()
            raise GangError(_in_one_line(failure)) from failure

    def _first_failure(self, asked: list[ray.ObjectRef]) -> Exception | None:
        """A worker that died explains its peers' broken connections, not the other way round."""
        everything = list(dict.fromkeys([*asked, *self._fitting]))
        ended, _ = ray.wait(everything, num_returns=len(everything), timeout=_ECHO_S)
        failures = []
        for reference in ended:
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                failures.append(error)
        return min(failures, key=lambda e: not isinstance(e, ray.exceptions.RayActorError), default=None)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ray.exceptions.RayActorError):
        return f"a worker died: {' '.join(str(error).split())}"
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "the workers did not answer in time (train.start_timeout_s, train.stall_timeout_s)"
    cause = getattr(error, "cause", None) or error
    return f"a worker failed: {type(cause).__name__}: {' '.join(str(cause).split())}"
