"""Edges come and go: a store and its PPR artefacts follow, and only rows that moved too far are pushed again.

What a row may have moved is bounded without the new row (:mod:`optimag_dist.ppr.drift`). A row whose error bound stays
within (1 + slack)·eps keeps its entries and takes the larger bound; the others are what a fresh run would store, bit
for bit. Bounds add up over updates, so a row is pushed again once many small changes have come together.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from pydantic import Field

from optimag_dist.files import sole_writer
from optimag_dist.options import Options
from optimag_dist.ppr.artefact import (
    BlockRecord,
    PPRArtefact,
    PPRBlock,
    PPROptions,
    artefact_key,
    block_name,
    read_block,
    write_block,
)
from optimag_dist.ppr.drift import Drift, measure_drift
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ppr.topk import TopK, push_sources
from optimag_dist.progress_bar import progress_bar
from optimag_dist.store import GraphStore
from optimag_dist.store.csr import graph_hash, row_pointers
from optimag_dist.store.derive import EdgeChanges, apply_changes, read_changes
from optimag_dist.store.layout import META, read_meta
from optimag_dist.store.partition import PARTITIONS
from optimag_dist.store.staging import Say, bytes_under, fingerprint, publish, staging
from optimag_dist.types import CSR, InputError

# Up to so many rows are pushed in this process. Of more, blocks of which most rows are affected go to Ray as a whole.
_LOCAL_ROWS = 4096
# Rows pushed and held at a time: at k = 32 they take 34 MB.
_GROUP_ROWS = 1 << 17
_PPR_FOLDER = "ppr"


class UpdateOptions(Options):
    """A row is kept while its error bound is at most (1 + ``slack``)·eps; at 0, only if it cannot have
    gone beyond eps."""

    slack: float = Field(1.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class ArtefactUpdate:
    """An artefact after an update: its rows, how many were pushed again, the largest error bound of a row in units of
    eps, and the seconds it took."""

    path: Path
    rows: int
    renewed: int
    worst_bound: float
    seconds: float


def update_ppr(
    store_path: str | Path,
    edges_path: str | Path,
    out_path: str | Path | None = None,
    options: UpdateOptions = UpdateOptions(),  # noqa: B008  (frozen)
    *,
    progress: bool = True,
    say: Say = print,
) -> list[ArtefactUpdate]:
    """Insert and delete edges in an undirected store and bring every finished PPR artefact in it up to date.

    The new store stands at ``out_path``, by default in the place of the old one, which goes only when the new one is
    whole, with its artefacts; a killed update leaves the old one as it was. Files other than the topology are hard
    links. Updates of one store wait for one another, and for artefacts that are being computed in it. ``edges_path`` is
    as :func:`~optimag_dist.store.derive.read_changes` reads it; ``say`` takes lines for people. ``InputError``: the
    store or the changes cannot be used, ``out_path`` is taken, an artefact is damaged, or (in place) the store's folder
    holds something that is not the store's. Returns what became of each artefact, in the order of their old keys.
    """
    source = Path(store_path).resolve()
    target = source if out_path is None else Path(out_path).resolve()
    if target != source and target.exists():
        raise InputError(f"{target}: is taken; name a new folder for the changed store")
    inputs = fingerprint([Path(edges_path)] if Path(edges_path).is_file() else [], str(source))
    with staging(target, inputs, bytes_under(source), say) as stage:
        # Opened under the lock of the target: an update that came before this one has been published, and a store
        # that a killed one had moved away has come back.
        store = GraphStore.open(source)
        if target == source:
            _check_nothing_is_lost(source, say)
        changes = read_changes(edges_path, store)
        with _finished_artefacts(store, say) as artefacts:
            new = apply_changes(store, changes, stage.store)
            updates = [_update(artefact, store, new, changes, options, progress) for artefact in artefacts]
            publish(stage, target)
    return [ArtefactUpdate(**{**vars(u), "path": target / u.path.relative_to(new.path)}) for u in updates]


def _check_nothing_is_lost(source: Path, say: Say) -> None:
    known = {*read_meta(source).files, META, _PPR_FOLDER, PARTITIONS}
    strange = sorted(path.name for path in source.iterdir() if path.name not in known)
    if strange:
        raise InputError(
            f"{source}: holds {', '.join(strange)}, which would go with the old store; move it away, or name a new "
            "folder for the changed store (--out)"
        )
    if (source / PARTITIONS).is_dir():
        say(f"{source / PARTITIONS}: partitions of the old graph go with it; run optimag partition again")


@contextmanager
def _finished_artefacts(store: GraphStore, say: Say) -> Iterator[list[PPRArtefact]]:
    """The store's finished artefacts, each locked against other writers and compared with its checksums."""
    digest = graph_hash(store.topology)
    with ExitStack() as locks:
        artefacts = []
        for path in sorted(path for path in (store.path / _PPR_FOLDER).glob("*") if path.is_dir()):
            locks.enter_context(sole_writer(path))
            if not (path / META).is_file():
                say(f"{path}: unfinished, not carried over; `optimag ppr` computes it for the changed store")
                continue
            artefact = PPRArtefact.open(path)
            if artefact.graph_hash != digest:
                raise InputError(f"{path}: is the PPR of another graph; move it out of the store's folder")
            artefacts.append(artefact)
        if not artefacts:
            say(f"{store.path}: holds no PPR artefact, only its edges change")
        yield artefacts


def _update(
    artefact: PPRArtefact,
    old: GraphStore,
    new: GraphStore,
    changes: EdgeChanges,
    options: UpdateOptions,
    progress: bool,
) -> ArtefactUpdate:
    started = time.perf_counter()
    # The new store has no partition yet; where rows are pushed does not change them.
    ppr = artefact.options.model_copy(update={"placement": "replicated", "partition": None})
    digest = graph_hash(new.topology)
    key = artefact_key(digest, ppr)
    path = new.path / _PPR_FOLDER / key
    drift = measure_drift(
        old.topology, new.topology, changes.inserted, changes.deleted, teleport=ppr.teleport, eps=ppr.eps
    )
    limit = (1 + options.slack) * ppr.eps
    num_blocks = -(-artefact.num_nodes // ppr.block_size)
    blocks = (read_block(artefact.path / block_name(index)) for index in range(num_blocks))
    plans = [_Plan.make(block, drift, min(ppr.k, artefact.num_nodes), limit) for block in blocks]
    renewed = sum(len(plan.renew) for plan in plans)
    most = {plan.block.first_node for plan in plans if 2 * len(plan.renew) > plan.block.num_rows}
    whole = [plan for plan in plans if renewed > _LOCAL_ROWS and plan.block.first_node in most]
    merged = [plan for plan in plans if renewed <= _LOCAL_ROWS or plan.block.first_node not in most]
    records = _merge_blocks(merged, new.topology, ppr, path, key, progress)
    if whole:
        renewed += sum(plan.block.num_rows - len(plan.renew) for plan in whole)
        # Finds the blocks above finished and makes the others, as of a run that was interrupted.
        compute_ppr(new, ppr, path, progress=progress)
    else:
        PPRArtefact.finish(path, artefact.num_nodes, ppr, digest, records)
    worst = PPRArtefact.open(path).bounds(np.arange(artefact.num_nodes)).max() / ppr.eps
    return ArtefactUpdate(path, artefact.num_nodes, renewed, float(worst), time.perf_counter() - started)


def _merge_blocks(
    plans: list["_Plan"], topology: CSR, ppr: PPROptions, path: Path, key: str, progress: bool
) -> list[BlockRecord]:
    records = []
    num_rows = sum(len(plan.renew) for plan in plans)
    with progress_bar("PPR rows", num_rows, wanted=progress) as advance:
        # A push costs O(n) once, so not one for each block.
        ends = np.cumsum([len(plan.renew) for plan in plans]) // _GROUP_ROWS
        for _, numbers in groupby(range(len(plans)), ends.__getitem__):
            group = [plans[number] for number in numbers]
            nodes = np.concatenate([plan.block.first_node + plan.renew for plan in group])
            rows = push_sources(topology, nodes, teleport=ppr.teleport, eps=ppr.eps, k=ppr.k)
            first = 0
            for plan in group:
                first_node = plan.block.first_node
                name = block_name(first_node // ppr.block_size)
                records.append(write_block(path / name, key, first_node, *plan.merge(rows, first)))
                first += len(plan.renew)
            advance(len(nodes))
    return records


@dataclass(frozen=True)
class _Plan:
    """What becomes of a block: ``bounds`` (rows,) float32 on the new graph; rows to ``renew`` are pushed again."""

    block: PPRBlock
    bounds: np.ndarray
    renew: np.ndarray

    @staticmethod
    def make(block: PPRBlock, drift: Drift, k: int, limit: float) -> "_Plan":
        bounds = drift.bounds(block.first_node, block.offsets, block.indices, block.bounds, k)
        # Rounded up: an upper bound stays one.
        above = np.nextafter(bounds.astype(np.float32), np.float32(np.inf))
        return _Plan(block, np.where(bounds > 0, above, 0).astype(np.float32), np.flatnonzero(~(bounds <= limit)))

    def merge(self, rows: TopK, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``indptr, indices, values, bounds`` of the block, in which ``rows`` from ``first`` on replace the renewed."""
        last = first + len(self.renew)
        is_new = np.zeros(self.block.num_rows, bool)
        is_new[self.renew] = True
        old_sizes = np.diff(self.block.offsets)
        sizes = old_sizes.astype(np.int64)
        sizes[self.renew] = np.diff(rows.indptr[first : last + 1])
        indptr = row_pointers(sizes)
        from_rows, kept = np.repeat(is_new, sizes), np.repeat(~is_new, old_sizes)
        entries = slice(rows.indptr[first], rows.indptr[last])
        indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        indices[from_rows], indices[~from_rows] = rows.indices[entries], self.block.indices[kept]
        values[from_rows], values[~from_rows] = rows.values[entries], self.block.values[kept]
        bounds = self.bounds.copy()
        bounds[self.renew] = rows.bounds[first:last]
        return indptr, indices, values, bounds
