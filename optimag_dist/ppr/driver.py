"""Computes a PPR artefact block by block with Ray: replicated, by tasks on hosts that map the whole topology; sharded,
by actors that each own shards of a partition and ask one another for the adjacency rows they lack. One loop supervises
both, and both give the same bits."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import ray

from optimag_dist.console import say
from optimag_dist.locks import sole_user
from optimag_dist.ppr.artefact import (
    BlockRecord,
    PPRArtefact,
    PPROptions,
    artefact_key,
    block_name,
    read_block,
    write_block,
)
from optimag_dist.ppr.sharded import MB, ShardedPusher, Traffic, actor_bytes, requests
from optimag_dist.ppr.topk import TopK, push_sources
from optimag_dist.progress_bar import progress_bar
from optimag_dist.ray_session import (
    IN_FLIGHT,
    Slot,
    completed,
    ensure_ray,
    explained,
    task_slots,
    translated_ray_errors,
)
from optimag_dist.storage import AnyPath, RemotePath, file_sizes, located, remove, to_read, to_write
from optimag_dist.store import GraphStore, Partition
from optimag_dist.store.csr import graph_hash, symmetrise
from optimag_dist.store.layout import META
from optimag_dist.store.partition import find_partition
from optimag_dist.telemetry.metrics import count_ppr_block
from optimag_dist.types import CSR, InputError, RunError

# A block whose process dies is tried again this often; more than that, and the block itself is what kills it.
_RETRIES = 3


@dataclass(frozen=True)
class BlockJob:
    """What every block of one artefact has in common."""

    path: AnyPath
    key: str
    num_nodes: int
    options: PPROptions

    @property
    def num_blocks(self) -> int:
        return -(-self.num_nodes // self.options.block_size)

    def nodes(self, index: int) -> range:
        start = index * self.options.block_size
        return range(start, min(start + self.options.block_size, self.num_nodes))


@dataclass
class RunTotals:
    """What blocks took that were computed, not those found finished; seconds of wall and processor time."""

    blocks: int = 0
    rows: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pushes: int = 0
    arcs: int = 0
    traffic: Traffic = field(default_factory=Traffic)

    def add(self, other: "RunTotals") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def per_node(self) -> str:
        rows = max(1, self.rows)
        return f"{self.seconds / rows * 1e6:.0f} µs, {self.pushes / rows:.0f} pushes per node"

    def line(self) -> str:
        rows, what = max(1, self.rows), f"{self.rows:,} nodes in {self.blocks:,} blocks"
        text = f"{what}: {self.per_node()}, {self.arcs / rows:,.0f} arcs per node"
        if self.traffic.rounds:
            text += (
                f"; {self.traffic.num_bytes / rows:,.0f} bytes ({self.traffic.rows / rows:.2f} rows) fetched per node, "
                f"{self.traffic.rounds / max(1, self.blocks):.1f} rounds per block"
            )
        return text


#: Number of a block, what its task wrote, and what that took.
BlockReport: TypeAlias = tuple[int, BlockRecord, RunTotals]


def compute_block(job: BlockJob, index: int, push: Callable[[np.ndarray], tuple[TopK, Traffic]]) -> BlockReport:
    started, cpu_started = time.perf_counter(), time.process_time()
    nodes = job.nodes(index)
    rows, traffic = push(np.arange(nodes.start, nodes.stop, dtype=np.int64))
    with to_write(job.path / block_name(index)) as file:
        record = write_block(file, job.key, nodes.start, rows.indptr, rows.indices, rows.values, rows.bounds)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return index, record, RunTotals(1, len(nodes), seconds, cpu_seconds, rows.pushes, rows.arcs, traffic)


def finished_artefact(path: AnyPath, key: str) -> PPRArtefact | None:
    """The artefact in ``path`` if it is finished and sound, None if there is something to compute."""
    try:
        artefact = PPRArtefact.open(path)
    except InputError:
        # Unfinished or damaged: whatever blocks are sound will be found one by one.
        return None
    if artefact.key != key:
        raise InputError(
            f"{path}: holds the PPR of another graph or other options (key {artefact.key}, needed {key}); "
            "choose another path, or delete it"
        )
    # This host may have its copy of a remote one from before a block was lost.
    remote = isinstance(path, RemotePath)
    return None if remote and not file_sizes(artefact.path).items() <= file_sizes(path).items() else artefact


def reusable_blocks(job: BlockJob) -> dict[int, BlockRecord]:
    """The sound blocks that are already there, by number."""
    records = {}
    there = file_sizes(job.path)
    for index, name in enumerate(map(block_name, range(job.num_blocks))):
        if name not in there:
            continue
        with to_read(job.path / name) as file:
            try:
                block = read_block(file)
            except InputError:
                continue
            if not block.intact():
                continue
            if block.key != job.key:
                raise InputError(
                    f"{job.path / name}: is of another graph or other options; choose another path, or delete it"
                )
            nodes = job.nodes(index)
            if (block.first_node, block.num_rows) == (nodes.start, len(nodes)):
                records[index] = block.record()
    return records


def drop_stale_files(job: BlockJob) -> None:
    """Remove what a killed run, or one with smaller blocks, has left beside the finished blocks."""
    names = {block_name(index) for index in range(job.num_blocks)}
    for name in file_sizes(job.path):
        stale = any(fnmatch(name, pattern) for pattern in ("block-*.arrow", ".block-*.tmp", ".meta.json.*.tmp"))
        if stale and name not in names:
            remove(job.path / name)


def compute_ppr(
    store: GraphStore,
    options: PPROptions,
    out_path: str | AnyPath | None = None,
    *,
    progress: bool = True,
    totals: RunTotals | None = None,
) -> PPRArtefact:
    """Top-k PPR of every node of ``store`` on its symmetrised graph.

    A finished artefact of the same graph and options is checked and returned; of a killed or damaged one, the blocks
    whose checksum holds are kept. When several processes ask for the same artefact, one computes and the others wait. A
    process of Ray that dies is replaced and its blocks are tried again. ``store.path`` and ``out_path``, by default
    ``store.location/ppr/<key>``, must mean the same files on every Ray node; tasks send the blocks of a remote one as
    they finish. ``totals`` is filled with what the run took. ``InputError``: ``out_path`` holds something else than
    (part of) this artefact, a sharded run has no partition to work on, or its row cache is too small for a source.
    ``RunError``: a block failed; names it.
    """
    totals = totals if totals is not None else RunTotals()
    placement: Replicated | Sharded
    if options.placement == "sharded":
        if isinstance(store.location, RemotePath):
            raise InputError(
                f"{store.location}: placement=sharded needs the store and its partition on a disk all hosts mount; "
                f"use placement=replicated, or copy the store there"
            )
        placement = Sharded(find_partition(store.path, store.content_hash, options.partition), options, progress)
    else:
        with progress_bar("PPR: symmetrising and hashing the graph", None, wanted=progress):
            placement = Replicated(store)
    key = artefact_key(placement.graph_hash, options)
    path = located(out_path) if out_path is not None else store.location / "ppr" / key
    if isinstance(path, Path) and path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; needed a directory for the PPR artefact, or a path that is still free")
    with sole_user(path):
        if finished := finished_artefact(path, key):
            return finished
        job = BlockJob(path, key, placement.num_nodes, options)
        records = reusable_blocks(job)
        missing = [index for index in range(job.num_blocks) if index not in records]
        # A damaged artefact is unfinished from here on, whatever its old list of blocks says.
        remove(path / META)
        ensure_ray()
        # closing(): an interrupt between two reports must cancel the tasks too, not wait for a garbage collection.
        with (
            translated_ray_errors(f"PPR in {path}", "finished blocks stay: the same command resumes"),
            placement.slots(job) as slots,
            progress_bar("PPR: blocks", job.num_blocks, done=len(records), wanted=progress) as advance,
            closing(_run_blocks(job, slots, missing)) as reports,
        ):
            for index, record, took in reports:
                records[index] = record
                count_ppr_block(took.rows, took.pushes, took.traffic.rows, took.traffic.num_bytes)
                totals.add(took)
                advance(1, f"PPR: {totals.per_node()}; blocks")
        drop_stale_files(job)
        ordered = [records[index] for index in sorted(records)]
        PPRArtefact.finish(path, job.num_nodes, options, placement.graph_hash, ordered)
    return PPRArtefact.open(path)


def _run_blocks(job: BlockJob, slots: Sequence[Slot], missing: list[int]) -> Generator[BlockReport, None, None]:
    """Reports of the blocks as they finish; leaving early cancels what is still out."""
    with closing(completed(slots, missing)) as tasks:
        for index, task in tasks:
            try:
                report = ray.get(task)
            except ray.exceptions.RayError as error:
                ours = explained(error)
                if isinstance(ours, InputError):
                    raise ours from error
                nodes = job.nodes(index)
                raise RunError(
                    f"PPR block {index} of {job.num_blocks} (nodes {nodes.start} to {nodes.stop - 1}) failed; "
                    f"finished blocks stay in {job.path}, the same command resumes.\n{ours or error}"
                ) from error
            yield report


class Replicated:
    """Every host maps the store's own file; only a graph that had to be symmetrised travels."""

    def __init__(self, store: GraphStore) -> None:
        graph = symmetrise(store.topology)
        self._source = store if graph is store.topology else graph
        self.num_nodes = graph.num_nodes
        self.graph_hash = graph_hash(graph)

    @contextmanager
    def slots(self, job: BlockJob) -> Iterator[Sequence[Slot]]:
        job_ref, source = ray.put(job), ray.put(self._source)
        yield task_slots(lambda index: _push_block.remote(job_ref, source, index))


@ray.remote(num_cpus=1)
def _push_block(job: BlockJob, source: GraphStore | CSR, index: int) -> BlockReport:
    def push(nodes: np.ndarray) -> tuple[TopK, Traffic]:
        graph = source if isinstance(source, CSR) else source.topology
        options = job.options
        rows = push_sources(graph, nodes, teleport=options.teleport, eps=options.eps, k=options.k, num_threads=1)
        return rows, Traffic()

    return compute_block(job, index, push)


class Sharded:
    """Every actor maps the shards it owns, part p belonging to actor p mod A, and who owns the others."""

    def __init__(self, partition: Partition, options: PPROptions, progress: bool) -> None:
        self._partition = partition
        self._options = options
        self._progress = progress
        self.num_nodes = partition.meta.num_nodes
        self.graph_hash = partition.meta.graph_hash

    @contextmanager
    def slots(self, job: BlockJob) -> Iterator[Sequence[Slot]]:
        actors = self._start(job)
        try:
            yield [partial(actor.push.remote, actors) for actor in actors] * IN_FLIGHT
        finally:
            for actor in actors:
                ray.kill(actor)

    def _start(self, job: BlockJob) -> list[Any]:
        meta = self._partition.meta
        cores = ray.cluster_resources().get("CPU", 1.0)
        count = min(self._options.actors or max(1, int(cores)), meta.parts)
        needed = actor_bytes(meta.num_nodes, meta.num_arcs, self._options)
        if self._progress:
            uses = ", ".join(f"{name} {size / MB:,.0f}" for name, size in needed.items())
            total = f"at most {sum(needed.values()) / MB:,.0f} MB each"
            say(f"PPR: {count} actors for {meta.parts} shards, {total} ({uses})", stderr=True)
        actor = _ShardActor.options(num_cpus=min(1.0, cores / count))  # type: ignore[attr-defined]
        return [actor.remote(job, self._partition, number, count) for number in range(count)]


# Answers about rows have threads of their own: two actors that push may wait for one another's rows.
@ray.remote(max_restarts=-1, max_task_retries=_RETRIES, concurrency_groups={"rows": 2})
class _ShardActor:
    def __init__(self, job: BlockJob, partition: Partition, number: int, count: int) -> None:
        self._job = job
        self._partition = partition
        self._number = number
        self._count = count
        self._peers: list[Any] = []
        self._pusher = ShardedPusher(partition.degrees, self._fetch, job.options)
        self._pusher.warm_up()

    @ray.method(concurrency_group="rows")
    def rows(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._partition.rows(nodes)

    def push(self, peers: list[Any], index: int) -> BlockReport:
        # With every block: an actor that was started again has no other way to learn of its peers.
        self._peers = peers
        return compute_block(self._job, index, self._pusher.push)

    def _fetch(self, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        limit = self._job.options.in_flight_mb * MB
        owner = self._partition.part[nodes] % self._count
        mine = owner == self._number
        if mine.any():
            yield nodes[mine], *self._partition.rows(nodes[mine])
        waiting = requests(nodes[~mine], owner[~mine], self._partition.degrees, limit)
        in_flight: dict[ray.ObjectRef, tuple[np.ndarray, int]] = {}
        following = next(waiting, None)
        while following is not None or in_flight:
            while following is not None and (
                not in_flight or following[2] + sum(size for _, size in in_flight.values()) <= limit
            ):
                peer, asked, size = following
                in_flight[self._peers[peer].rows.remote(asked)] = asked, size
                following = next(waiting, None)
            done, _ = ray.wait(list(in_flight), num_returns=1)
            asked, _ = in_flight.pop(done[0])
            yield asked, *ray.get(done[0])
