"""Computes a PPR artefact block by block with Ray.

Replicated: tasks over blocks of sources, every host maps the whole topology. Sharded: actors that each own some shards
of a partition push blocks and ask one another for the adjacency rows they lack. One loop supervises both, and both give
the same bits.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import ray

from optimag_dist.locks import sole_user
from optimag_dist.ppr.artefact import META_NAME, PPRArtefact, artefact_key
from optimag_dist.ppr.blocks import (
    BlockJob,
    BlockReport,
    RunTotals,
    drop_stale_files,
    finished_artefact,
    reusable_blocks,
)
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.placement import Replicated, Sharded
from optimag_dist.progress_bar import progress_bar
from optimag_dist.ray_session import Slot, completed, ensure_ray, explained, translated_ray_errors
from optimag_dist.storage import AnyPath, RemotePath, located, remove
from optimag_dist.store import GraphStore
from optimag_dist.store.partition import find_partition
from optimag_dist.telemetry.metrics import count_ppr_block
from optimag_dist.types import InputError, RunError


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
    whose checksum holds are kept and the rest is computed. When several processes ask for the same artefact, one
    computes and the others wait. ``store.path`` and ``out_path`` must mean the same files on every Ray node.

    A process of Ray that dies is replaced and its blocks are tried again.

    Args:
        store: an open :class:`~optimag_dist.store.GraphStore`; its topology, if directed, is symmetrised once here.
        options: see :class:`PPROptions`.
        out_path: directory; default ``store.location/ppr/<key>``. Tasks send the blocks of a remote one as they finish.
        progress: show a bar when the terminal can.
        totals: filled with what the run took.

    Raises:
        InputError: ``out_path`` holds something else than (part of) this artefact, a sharded run has no partition to
            work on, or its row cache is too small for a source.
        RunError: a block failed; names it. Blocks finished before stay and are reused by the next call.
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
        finished = finished_artefact(path, key)
        if finished is not None:
            return finished
        job = BlockJob(path, key, placement.num_nodes, options)
        records = reusable_blocks(job)
        missing = [index for index in range(job.num_blocks) if index not in records]
        # A damaged artefact is unfinished from here on, whatever its old list of blocks says.
        remove(path / META_NAME)
        ensure_ray()
        # closing(): an interrupt between two reports must cancel the tasks too, not wait for a garbage collection.
        with (
            translated_ray_errors(f"PPR in {path}", "finished blocks stay: the same command resumes"),
            placement.slots(job) as slots,
            progress_bar("PPR: blocks", job.num_blocks, done=len(records), wanted=progress) as advance,
            closing(_run_blocks(job, slots, missing)) as reports,
        ):
            for report in reports:
                records[report.index] = report.record
                took = report.took
                count_ppr_block(took.rows, took.pushes, took.traffic.rows, took.traffic.num_bytes)
                totals.add(took)
                advance(1, f"PPR: {totals.per_node()}; blocks")
        drop_stale_files(job)
        ordered = [records[index] for index in range(job.num_blocks)]
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
