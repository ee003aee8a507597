"""Where the topology lies while Ray's processes push over it: all of it on every host, or in shards that actors own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray

from optimag_dist.console import say
from optimag_dist.ppr.blocks import BlockJob, BlockReport, compute_block
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.sharded import MB, ShardedPusher, Traffic, actor_bytes, requests
from optimag_dist.ppr.topk import TopK, push_sources
from optimag_dist.ray_session import IN_FLIGHT, Slot, task_slots
from optimag_dist.store import GraphStore, Partition
from optimag_dist.store.csr import graph_hash, symmetrise
from optimag_dist.types import CSR

# A block whose process dies is tried again this often; more than that, and the block itself is what kills it.
_RETRIES = 3


class Replicated:
    """Every host maps the store's own file; only a graph that had to be symmetrised travels."""

    def __init__(self, store: GraphStore) -> None:
        topology = store.topology
        graph = symmetrise(topology)
        self._source = store if graph is topology else graph
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
