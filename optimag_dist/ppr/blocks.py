"""The blocks of an artefact that is being made: what is there already, and what making one takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch

import numpy as np

from optimag_dist.ppr.artefact import PPRArtefact
from optimag_dist.ppr.block import BlockRecord, block_name, read_block, write_block
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.sharded import Traffic
from optimag_dist.ppr.topk import TopK
from optimag_dist.storage import AnyPath, RemotePath, file_sizes, remove, to_read, to_write
from optimag_dist.types import InputError


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
        """One line for people."""
        rows = max(1, self.rows)
        arcs = self.arcs / rows
        text = f"{self.rows:,} nodes in {self.blocks:,} blocks: {self.per_node()}, {arcs:,.0f} arcs per node"
        if self.traffic.rounds:
            text += (
                f"; {self.traffic.num_bytes / rows:,.0f} bytes ({self.traffic.rows / rows:.2f} rows) fetched per node, "
                f"{self.traffic.rounds / max(1, self.blocks):.1f} rounds per block"
            )
        return text


@dataclass(frozen=True)
class BlockReport:
    """What a task says about the block it wrote."""

    index: int
    record: BlockRecord
    took: RunTotals


def compute_block(job: BlockJob, index: int, push: Callable[[np.ndarray], tuple[TopK, Traffic]]) -> BlockReport:
    """Push the sources of block ``index`` and write it."""
    started, cpu_started = time.perf_counter(), time.process_time()
    nodes = job.nodes(index)
    rows, traffic = push(np.arange(nodes.start, nodes.stop, dtype=np.int64))
    with to_write(job.path / block_name(index)) as file:
        record = write_block(file, job.key, nodes.start, rows.indptr, rows.indices, rows.values, rows.bounds)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    took = RunTotals(1, len(nodes), seconds, cpu_seconds, rows.pushes, rows.arcs, traffic)
    return BlockReport(index, record, took)


def finished_artefact(path: AnyPath, key: str) -> PPRArtefact | None:
    """The artefact in ``path`` if it is finished and sound, None if there is something to compute."""
    try:
        artefact = PPRArtefact.open(path)
        if artefact.key == key:
            # This host may have its copy of a remote one from before a block was lost.
            if isinstance(path, RemotePath) and not file_sizes(artefact.path).items() <= path.files().items():
                return None
            return artefact
    except InputError:
        # Unfinished or damaged: whatever blocks are sound will be found one by one.
        return None
    raise InputError(
        f"{path}: holds the PPR of another graph or other options (key {artefact.key}, needed {key}); "
        "choose another path, or delete it"
    )


def reusable_blocks(job: BlockJob) -> dict[int, BlockRecord]:
    """The sound blocks that are already there, by number."""
    records = {}
    there = file_sizes(job.path)
    for index in range(job.num_blocks):
        if block_name(index) not in there:
            continue
        with to_read(job.path / block_name(index)) as file:
            try:
                block = read_block(file)
            except InputError:
                continue
            if not block.intact():
                continue
            if block.key != job.key:
                raise InputError(
                    f"{job.path / block_name(index)}: belongs to the PPR of another graph or other options; "
                    "choose another path, or delete it"
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
