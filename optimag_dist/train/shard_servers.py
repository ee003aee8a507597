"""The actors that serve a graph's shards while it is trained on, and how workers ask them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from optimag_dist.sampling import GraphDataSource, ShardedSource, ShardServer
from optimag_dist.storage import RemotePath
from optimag_dist.store import GraphStore, PartitionOptions, partition_store
from optimag_dist.train.options import WorkersOptions
from optimag_dist.types import InputError

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
