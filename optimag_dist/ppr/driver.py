"""Computes a PPR artefact with Ray tasks over blocks of sources; the topology is mapped on every host."""

import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from optimag_dist.ppr.artefact import META_NAME, PPRArtefact, artefact_key
from optimag_dist.ppr.block import block_name, read_block, write_block
from optimag_dist.ppr.graph import graph_hash, symmetrise
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.topk import push_sources
from optimag_dist.ray_session import ensure_ray
from optimag_dist.types import CSR, InputError

# Tasks handed to Ray per core: one that runs, one that waits, so that no core idles and Ctrl-C cancels quickly.
_IN_FLIGHT_PER_CPU = 2


class TopologyStore(Protocol):
    """What the driver needs of a graph store; it must pickle cheaply (by path)."""

    @property
    def path(self) -> Path: ...

    @property
    def topology(self) -> CSR: ...


@dataclass(frozen=True)
class BlockJob:
    """What every block of one artefact has in common."""

    path: Path
    key: str
    num_nodes: int
    options: PPROptions

    @property
    def num_blocks(self) -> int:
        return -(-self.num_nodes // self.options.block_size)

    def nodes(self, index: int) -> range:
        start = index * self.options.block_size
        return range(start, min(start + self.options.block_size, self.num_nodes))


@dataclass(frozen=True)
class BlockReport:
    """What a task says about the block it wrote."""

    index: int
    rows: int
    checksum: str
    seconds: float
    pushes: int


def compute_ppr(
    store: TopologyStore, options: PPROptions, out_path: str | Path | None = None, *, progress: bool = True
) -> PPRArtefact:
    """Top-k PPR of every node of ``store`` on its symmetrised graph.

    A finished artefact of the same graph and options is checked and returned; of a killed or damaged one, the blocks
    whose checksum holds are kept and the rest is computed. When several processes ask for the same artefact, one
    computes and the others wait. ``store.path`` and ``out_path`` must mean the same files on every Ray node.

    Args:
        store: an open :class:`~optimag_dist.store.GraphStore`; its topology, if directed, is symmetrised once here.
        options: see :class:`PPROptions`.
        out_path: directory; default ``store.path/ppr/<key>``.
        progress: show a bar when the terminal can.

    Raises:
        InputError: ``out_path`` holds something else than (part of) this artefact.
        RuntimeError: a block failed; names it. Blocks finished before stay and are reused by the next call.
    """
    topology = store.topology
    graph = symmetrise(topology)
    digest = graph_hash(graph)
    key = artefact_key(digest, options)
    path = Path(out_path).absolute() if out_path is not None else Path(store.path).absolute() / "ppr" / key
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; needed a directory for the PPR artefact, or a path that is still free")
    path.mkdir(parents=True, exist_ok=True)
    with _sole_writer(path):
        finished = _finished(path, key)
        if finished is not None:
            return finished
        job = BlockJob(path, key, graph.num_nodes, options)
        checksums = _reusable_blocks(job)
        missing = [index for index in range(job.num_blocks) if index not in checksums]
        # A damaged artefact is unfinished from here on, whatever its old list of blocks says.
        (path / META_NAME).unlink(missing_ok=True)
        ensure_ray()
        # Every host maps the store's own file; only a graph that had to be symmetrised travels.
        source = ray.put(store if graph is topology else graph)
        # closing(): an interrupt between two reports must cancel the tasks too, not wait for a garbage collection.
        with (
            _progress_bar(progress, job, len(missing)) as advance,
            closing(_run_blocks(job, source, missing)) as reports,
        ):
            for report in reports:
                checksums[report.index] = report.checksum
                advance(report)
        _drop_stale_files(job)
        ordered = [checksums[index] for index in range(job.num_blocks)]
        PPRArtefact.finish(path, job.num_nodes, options, digest, ordered)
    return PPRArtefact.open(path)


@ray.remote(num_cpus=1)
def _push_block(job: BlockJob, source: TopologyStore | CSR, index: int) -> BlockReport:
    started = time.perf_counter()
    graph = source if isinstance(source, CSR) else source.topology
    nodes = job.nodes(index)
    rows = push_sources(
        graph,
        np.arange(nodes.start, nodes.stop, dtype=np.int64),
        teleport=job.options.teleport,
        eps=job.options.eps,
        k=job.options.k,
        num_threads=1,
    )
    checksum = write_block(
        job.path / block_name(index), job.key, nodes.start, rows.indptr, rows.indices, rows.values, rows.bounds
    )
    return BlockReport(index, len(nodes), checksum, time.perf_counter() - started, rows.pushes)


def _run_blocks(job: BlockJob, source: ray.ObjectRef, missing: list[int]) -> Generator[BlockReport, None, None]:
    """Reports of the blocks as they finish; leaving early cancels what is still out."""
    job_ref = ray.put(job)
    limit = max(1, int(_IN_FLIGHT_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    waiting = iter(missing)
    in_flight: dict[ray.ObjectRef, int] = {}
    try:
        while True:
            while len(in_flight) < limit and (index := next(waiting, None)) is not None:
                in_flight[_push_block.remote(job_ref, source, index)] = index
            if not in_flight:
                return
            done, _ = ray.wait(list(in_flight), num_returns=1)
            index = in_flight.pop(done[0])
            try:
                report = ray.get(done[0])
            except ray.exceptions.RayError as error:
                nodes = job.nodes(index)
                raise RuntimeError(
                    f"PPR block {index} of {job.num_blocks} (nodes {nodes.start} to {nodes.stop - 1}) failed; "
                    f"finished blocks stay in {job.path}, the same command resumes.\n{error}"
                ) from error
            yield report
    finally:
        for reference in in_flight:
            ray.cancel(reference)


def _finished(path: Path, key: str) -> PPRArtefact | None:
    """The artefact in ``path`` if it is finished and sound, None if there is something to compute."""
    try:
        artefact = PPRArtefact.open(path)
        if artefact.key == key:
            artefact.verify()
            return artefact
    except InputError:
        # Unfinished or damaged: whatever blocks are sound will be found one by one.
        return None
    raise InputError(
        f"{path}: holds the PPR of another graph or other options (key {artefact.key}, needed {key}); "
        "choose another path, or delete it"
    )


def _reusable_blocks(job: BlockJob) -> dict[int, str]:
    """Checksums of the sound blocks that are already there, by block number."""
    checksums = {}
    for index in range(job.num_blocks):
        try:
            block = read_block(job.path / block_name(index))
        except InputError:
            continue
        if block.key != job.key:
            raise InputError(
                f"{job.path / block_name(index)}: belongs to the PPR of another graph or other options; "
                "choose another path, or delete it"
            )
        nodes = job.nodes(index)
        if (block.first_node, block.num_rows) == (nodes.start, len(nodes)) and block.intact():
            checksums[index] = block.checksum
    return checksums


def _drop_stale_files(job: BlockJob) -> None:
    """Remove what a killed run, or one with smaller blocks, has left beside the finished blocks."""
    names = {block_name(index) for index in range(job.num_blocks)}
    for pattern in ("block-*.arrow", ".block-*.tmp", ".meta.json.*.tmp"):
        for file in job.path.glob(pattern):
            if file.name not in names:
                file.unlink(missing_ok=True)


@contextmanager
def _progress_bar(progress: bool, job: BlockJob, num_missing: int) -> Iterator[Callable[[BlockReport], None]]:
    """A bar over blocks on standard error, silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("PPR"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks, {task.fields[speed]:.0f} µs and {task.fields[pushes]:.0f} pushes per node"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("PPR", total=job.num_blocks, completed=job.num_blocks - num_missing, speed=0.0, pushes=0.0)
        rows, seconds, pushes = 0, 0.0, 0

        def advance(report: BlockReport) -> None:
            nonlocal rows, seconds, pushes
            rows, seconds, pushes = rows + report.rows, seconds + report.seconds, pushes + report.pushes
            bar.update(task, advance=1, speed=seconds / rows * 1e6, pushes=pushes / rows)

        yield advance


@contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    """Hold the directory's lock; the system releases it when the process ends, however it ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
