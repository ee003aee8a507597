"""The one way to run fits: a group of DDP workers, started by Ray Train, that takes one fit after another.

Starting workers costs seconds (imports, compiled kernels, the process group), so they stay: a run's group goes through
all its fits, and a sweep's takes one trial after the other. What a fit leaves lies in its own directory and is all that
resuming needs; Ray is told results, not weights.
"""

import concurrent.futures
import contextlib
import itertools
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from optimag_dist.messages import said_by_system
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ray_private import has_died, keep_coordinator_here, not_placed
from optimag_dist.ray_session import ensure_ray
from optimag_dist.remote_copies import Mirror
from optimag_dist.sampling import GraphDataSource, ShardedSource, ShardServer
from optimag_dist.storage import AnyPath, RemotePath, file_system
from optimag_dist.store import GraphStore, PartitionOptions, partition_store
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.train.board import Board, Event
from optimag_dist.train.callback import CallbackList
from optimag_dist.train.callbacks import HeartbeatCallback, MirrorCallback, telemetry
from optimag_dist.train.fit import Fit, Worker, try_fit
from optimag_dist.train.options import RAY_TRAIN, RunConfig, WorkersOptions
from optimag_dist.train.placement import Cluster, use_gpus
from optimag_dist.train.stalls import StallDetector
from optimag_dist.train.supervisor import Supervisor
from optimag_dist.types import InputError, RunError

# A node may go while workers are started on it.
_START_RETRIES = 3
# By so much torch's own time-out, which names nobody, comes after ours.
_GRACE_S = 60
# The end of a group is waited for so long; then its workers are killed.
_LEAVE_S = 20


@dataclass(frozen=True)
class WorkerGroupSpec:
    """What a group is made of.

    Attributes:
        priors: where the PPR artefact is, for every set of options that a fit may have.
        rows: where neighbours and features come from; None maps the store.
        run: directory or URI of the run or sweep. At a URI, a fit is kept at ``variant/seed-<seed>`` below it, and
            worked on in a directory of each host's cache.
        of_sweep: it waits for its place for as long as it takes, not for ``start_timeout_s``, and Tune, not Ray Train,
            starts it again when workers have died.
    """

    options: WorkersOptions
    use_gpu: bool
    store: AnyPath
    priors: dict[PPROptions, AnyPath]
    rows: GraphDataSource | None
    run: AnyPath
    tracking: TrackingOptions
    of_sweep: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.options.cpus, **({"GPU": 1} if self.use_gpu else {})}


@contextlib.contextmanager
def worker_group_spec(
    config: RunConfig,
    store: GraphStore,
    ppr: Iterable[PPROptions],
    address: str | None,
    run: AnyPath,
    *,
    of_sweep: bool = False,
) -> Iterator[WorkerGroupSpec]:
    """Connect to a cluster that can hold the workers of ``config``, and prepare what they share until the block ends.

    The PPR artefact of each distinct one of ``ppr`` is found or computed. ``InputError``: the cluster is too small, or
    the store cannot be sharded.
    """
    workers = config.workers
    # An embedded session counts CPUs for bookkeeping alone: more workers than cores run, only slower.
    ensure_ray(address, num_cpus=max(len(os.sched_getaffinity(0)), workers.count * workers.cpus))
    keep_coordinator_here()
    use_gpu = use_gpus(workers.count, workers.cpus, workers.device)
    priors = {each: compute_ppr(store, each).location for each in dict.fromkeys(ppr)}
    with shard_servers(store, workers) as rows:
        yield WorkerGroupSpec(workers, use_gpu, store.location, priors, rows, run, config.tracking, of_sweep)


class WorkersLost(RuntimeError):
    """Workers have died, or were ended because they were stuck, more often than allowed; the group is gone."""


class WorkerGroup:
    """Starts the workers; use as a context manager, or :meth:`start` and :meth:`close` it. ``say`` prints a line for
    the user, and is called from a thread."""

    def __init__(self, spec: WorkerGroupSpec, say: Callable[[str], None] = lambda line: None) -> None:
        options = spec.options
        self._spec = spec
        # On the driver's own node: another may be taken away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        detector = StallDetector(options.count, options.start_timeout_s, options.stall_timeout_s, spec.of_sweep)
        self._supervisor = Supervisor(self._board, detector, say, self._give_up)
        self._begun = False
        # What comes first counts: the trainer's end or the supervisor's.
        self._end: concurrent.futures.Future[None] = concurrent.futures.Future()
        # On the main thread Ray takes Ctrl-C over and exits as if all were well.
        self._thread = threading.Thread(target=self._train, daemon=True)

    def start(self) -> None:
        # Ray takes these from the environment alone. The first is of one attempt to place the workers.
        attempt_s = self._spec.options.start_timeout_s / (_START_RETRIES + 1)
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(attempt_s)
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        self._thread.start()
        self._supervisor.start()

    def submit(self, fits: Sequence[Fit]) -> list[int]:
        """Queue ``fits``; returns their numbers, by which :meth:`events` tells of them."""
        # By reference, see Board; inside of a list Ray does not look them up.
        return ray.get(self._board.submit.remote([ray.put(fit) for fit in fits]))

    def events(self, patience_s: float) -> list[Event]:
        """What rank 0 has told since the last call; waits at most ``patience_s``.

        Raises:
            InputError: a worker cannot use its input.
            RunError: the workers have not come, or a disk or a memory is full.
            WorkersLost: they have died.
        """
        # What has ended before the question was asked has told everything when it is answered.
        ended = self._end.done()
        events: list[Event] = ray.get(self._board.read.remote(0.0 if ended else patience_s))
        self._begun = self._begun or bool(events)
        for event in events:
            if event.kind == "refused":
                raise event.content
        if ended and not events:
            self._end.result()
            raise WorkersLost("the workers have left")
        return events

    def stop(self) -> None:
        """Have the workers save and end the fits submitted so far at their next step; does not wait for it."""
        ray.get(self._board.stop.remote())

    def drain(self) -> None:
        """After :meth:`stop`, wait for it; raises as :meth:`events` does."""
        while not ray.get(self._board.idle.remote(1.0)):
            self.events(0.0)
        self.events(0.0)

    def close(self, patience_s: float = _LEAVE_S) -> None:
        """Let the workers go, and wait for it; those that have not gone after ``patience_s`` are killed."""
        self._board.close.remote()
        # One whose workers have no place yet has no end that could be waited for.
        if self._begun or self._supervisor.heard:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self._supervisor.kill_workers()
                self._thread.join(_LEAVE_S)
        self._supervisor.stop()

    def __enter__(self) -> "WorkerGroup":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # After Ctrl-C the process ends, and they with it.
        if kind is None or issubclass(kind, Exception):
            self.close()

    def _train(self) -> None:
        try:
            self._trainer().fit()
            self._finish(None)
        except BaseException as error:
            self._finish(error)

    def _give_up(self, error: Exception) -> None:
        self._finish(error)
        # Those that are started again find nothing to do.
        ray.get([self._board.stop.remote(), self._board.close.remote()])
        self._supervisor.kill_workers()

    def _finish(self, error: BaseException | None) -> None:
        if isinstance(error, ray.train.TrainingFailedError):
            error = self._explained(error)
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if error is None:
                self._end.set_result(None)
            else:
                self._end.set_exception(error)

    def _trainer(self) -> ray.train.torch.TorchTrainer:
        spec, options = self._spec, self._spec.options
        storage_filesystem, storage_path = file_system(spec.run)
        return ray.train.torch.TorchTrainer(
            train_worker,
            # By reference: Ray Train's own processes look at it, and should not load what it is made of.
            train_loop_config={"spec": ray.put(spec), "board": self._board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.count, use_gpu=spec.use_gpu, resources_per_worker=spec.bundle
            ),
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if spec.use_gpu else "gloo",
                # Collectives wait for a stuck rank until it has been named and killed.
                timeout_s=int(options.stall_timeout_s + options.start_timeout_s + _GRACE_S),
            ),
            run_config=ray.train.RunConfig(
                # Of another group of this name nothing is taken up: Ray Train is given no checkpoints.
                name=RAY_TRAIN,
                storage_path=storage_path,
                storage_filesystem=storage_filesystem,
                failure_config=ray.train.FailureConfig(
                    max_failures=0 if spec.of_sweep else options.max_failures,
                    controller_failure_limit=-1 if spec.of_sweep else _START_RETRIES,
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )

    def _explained(self, error: ray.train.TrainingFailedError) -> Exception:
        """What ended the workers: an error of theirs as it is, a death in one line."""
        options = self._spec.options
        if not_placed(error):
            return RunError(
                f"the workers were not placed within {options.start_timeout_s:g} s: {options.count} of "
                f"{options.cpus} CPUs each were asked for; {Cluster.current()}; CPUs free now: "
                f"{ray.available_resources().get('CPU', 0):g}. Raise workers.start_timeout_s, or add nodes; go on with "
                f"--resume"
            )
        failures = getattr(error, "worker_failures", {})
        for failure in failures.values():
            while failure is not None:
                if isinstance(failure, InputError):
                    return failure
                if isinstance(failure, OSError | MemoryError):
                    what = said_by_system(failure) if isinstance(failure, OSError) else "the memory of a host ran out"
                    return RunError(f"{what}. Finished fits and checkpoints are kept: go on with --resume")
                failure = failure.__cause__
        dead = [rank for rank, failure in failures.items() if has_died(failure)]
        # A peer of a dead worker may tell of it before Ray has noticed.
        bereft = [rank for rank, failure in failures.items() if "gloo" in str(failure) or "NCCL" in str(failure)]
        if not dead and not bereft:
            return error
        ranks = ", ".join(map(str, dead or bereft))
        what = "died, by a signal or with its host" if dead else "lost the connection to a peer"
        return WorkersLost(self._supervisor.last_words or f"rank {ranks} of the workers {what}")


def train_worker(config: dict[str, Any]) -> None:
    """One rank's life: fits in turn, until there are no more."""
    spec: WorkerGroupSpec = ray.get(config["spec"])
    board = config["board"]

    def say(line: str) -> None:
        board.tell.remote(Event("line", -1, line))

    context = ray.train.get_context()
    torch.set_num_threads(spec.options.cpus)
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    life = ray.train.collective.broadcast_from_rank_zero(uuid.uuid4().hex)
    heartbeat = HeartbeatCallback(board, life, worker.rank, spec.options.stall_timeout_s)
    number = -1
    try:
        store = GraphStore.open(spec.store)
        priors = {options: PPRArtefact.open(path) for options, path in spec.priors.items()}
        for position in itertools.count():
            given = ray.get(board.next.remote(life, position))
            if given is None:
                return
            number, fit = given[0], ray.get(given[1])
            heartbeat.begin(number, fit)
            place = fit.directory if isinstance(spec.run, Path) else spec.run / fit.variant / f"seed-{fit.seed}"
            ppr = priors.get(fit.config.ppr) if fit.config.needs_ppr else None
            # The fit's directory is this host's mirror of where it is kept.
            with Mirror(place, f"rank {worker.rank}") as mirror:
                # Every rank begins with what is there, so that a fit goes on from its last checkpoint on any host.
                mirror.fetch()
                fit = replace(fit, directory=mirror.path)
                with telemetry(fit, worker.rank, run=spec.run.name, tracking=spec.tracking, say=say) as told:
                    callbacks = CallbackList([*told, MirrorCallback(mirror), heartbeat])
                    result = try_fit(fit, store, ppr, worker, callbacks, spec.rows)
                if worker.rank == 0:
                    mirror.publish_all()
            heartbeat.done()
            if worker.rank == 0:
                ray.get(board.tell.remote(Event("stopped" if result is None else "result", number, result)))
    except InputError as error:
        # No failure for Ray Train, which would try again.
        heartbeat.done()
        ray.get(board.tell.remote(Event("refused", number, error)))


# Threads of a server: several workers ask at a time, and answering is mostly reading mapped files.
_CONCURRENCY = 4


@contextmanager
def shard_servers(store: GraphStore, options: WorkersOptions) -> Iterator[GraphDataSource | None]:
    """Rows of the shards of ``store``, served by actors until the block ends; None where ``options`` ask for replicas.

    The store, which must be undirected, is partitioned first if that has not been done. An actor that dies is started
    again, maps its shards and is asked again.
    """
    if options.placement == "replicated":
        yield None
        return
    if isinstance(store.location, RemotePath):
        raise InputError(
            f"{store.location}: workers.placement=sharded needs the store and its partition on a disk that all hosts "
            f"mount; use replicated, or copy the store there"
        )
    if store.directed:
        raise InputError(
            f"{store.path}: is directed; workers.placement=sharded needs an undirected graph, use replicated"
        )
    parts = min(max(PartitionOptions().parts, options.shard_servers), store.num_nodes)
    partition = partition_store(store, PartitionOptions(parts=parts, features=True))
    # No CPU is set aside: answering must never wait for the workers that ask.
    lasting = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": _CONCURRENCY}
    actor = ray.remote(ShardServer).options(num_cpus=0, scheduling_strategy="SPREAD", **lasting)
    actors = [actor.remote(partition) for _ in range(min(options.shard_servers, parts))]
    try:
        yield ShardedSource(partition, len(actors), AskActors(actors))
    finally:
        for each in actors:
            ray.kill(each)


class AskActors:
    """:data:`~optimag_dist.sampling.sharded.RpcCall` by Ray; travels to the workers."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def __call__(self, server: int, question: str, *arguments: Any) -> Callable[[], Any]:
        answer = getattr(self._actors[server], question).remote(*arguments)
        return lambda: ray.get(answer)
