"""Embeds or predicts every node of a store, into Parquet: layer by layer (:mod:`optimag_dist.layerwise`), with a Ray
task per block of nodes and layer, and files between the layers. Finished ones are kept: a killed run goes on."""

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from optimag_dist.inference.ids import distinct_nodes
from optimag_dist.inference.options import EmbedOptions, PredictOptions
from optimag_dist.inference.parts import Parts
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.locks import sole_user
from optimag_dist.progress_bar import progress_bar
from optimag_dist.ray_session import completed, ensure_ray, explained, task_device, task_slots, translated_ray_errors
from optimag_dist.storage import AnyPath, on_this_host, remove
from optimag_dist.store import GraphStore
from optimag_dist.types import Diverged, InputError, RunError

# Raises where values are not finite, and says whose they are.
Check = Callable[[Tensor, str], None]


@dataclass(frozen=True)
class Job:
    """What every task of one run has in common: ``nodes``, (k,) int64 ids to write in this order, or None for all,
    layer by layer; and how many ``stages`` there are: one, or one per layer and the encoders."""

    checkpoint: AnyPath
    store: GraphStore
    nodes: np.ndarray | None
    options: EmbedOptions | PredictOptions
    fanouts: tuple[int, ...]
    stages: int
    device: str
    parts: Parts

    def block(self, index: int) -> np.ndarray:
        rows = self.parts.rows(index)
        return np.arange(rows.start, rows.stop) if self.nodes is None else self.nodes[rows.start : rows.stop]


def infer(
    checkpoint: AnyPath,
    store: GraphStore,
    out: AnyPath,
    options: EmbedOptions | PredictOptions,
    *,
    user_ids: Sequence[Any] | None = None,
    progress: bool = True,
) -> AnyPath:
    """Write embeddings (:class:`EmbedOptions`) or predictions (:class:`PredictOptions`) of nodes to ``out``, and return
    that, absolute.

    The parts hold ``id`` (the users' own) and ``embedding`` (what the model's head sees, a list of numbers), or ``id``,
    ``label`` (a class) and ``probability``; see the options for more columns. The numbers do not depend on the number
    of workers, and on ``block_size`` only by rounding. A finished result is returned as it is; of an unfinished one,
    what is there is kept. Checkpoint, store and ``out`` must mean the same files on every Ray node, as URIs do.
    ``InputError``: checkpoint, store, ids and options do not fit together, or ``out`` holds something else.
    ``Diverged``: an answer is no number; names a node. ``RunError``: a block failed; names it. What was finished before
    stays and is reused by the next call.

    Args:
        checkpoint: ``model.pt`` of a fit, or the fit's directory.
        user_ids: whose rows to write, in this order; default: all nodes in the store's order.
    """
    trained = TrainedModel.open(checkpoint, torch.device("cpu"))
    trained.check_store(store, allow_other=options.allow_other_store)
    if isinstance(options, PredictOptions):
        trained.classification()
    fanouts = trained.fanouts(options.fanouts)
    nodes = None if user_ids is None else distinct_nodes(store, user_ids)
    kind = "embed" if isinstance(options, EmbedOptions) else "predict"
    record = {
        "kind": kind,
        "checkpoint": hashlib.sha256(trained.path.read_bytes()).hexdigest(),
        "store": store.content_hash,
        "options": options.model_dump(mode="json", exclude={"device", "allow_other_store"}),
        "fanouts": list(fanouts),
        "nodes": None if nodes is None else hashlib.sha256(nodes.tobytes()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    num_rows = store.num_nodes if nodes is None else len(nodes)
    parts = Parts(out.absolute(), key, num_rows, options.block_size)
    if parts.finished():
        return parts.path
    with sole_user(parts.path):
        if parts.finished():
            return parts.path
        layered = nodes is None and hasattr(trained.model.backbone, "layer")
        stages = len(fanouts) + 1 if layered else 1
        ensure_ray()
        device = task_device(options.device)
        job = Job(trained.location, store, nodes, options, fanouts, stages, device, parts)
        missing = _missing(job)
        total = job.stages * parts.num_parts
        done = total - sum(map(len, missing))
        with (
            translated_ray_errors(str(parts.path), "what is finished stays: the same command goes on"),
            progress_bar(f"{kind}: blocks", total, done=done, wanted=progress) as advance,
            closing(_run(job, missing)) as reports,
        ):
            for _ in reports:
                advance(1)
        places = {"checkpoint_path": str(trained.location), "store_path": str(store.location)}
        parts.finish({**record, **places, "classes": trained.classes})
    return parts.path


def _missing(job: Job) -> list[list[int]]:
    """Stage → blocks to compute. A layer is needed only where a later one lacks a block."""
    parts = range(job.parts.num_parts)
    missing: list[list[int]] = [[] for _ in range(job.stages)]
    missing[-1] = [index for index in parts if not job.parts.has_part(index)]
    for stage in range(job.stages - 2, -1, -1):
        if missing[stage + 1]:
            missing[stage] = [index for index in parts if not job.parts.has_activations(stage, index)]
    return missing


class Activations:
    """One layer's output for all nodes, a mapped file per block of ``block_size`` nodes."""

    def __init__(self, files: Sequence[Path], block_size: int) -> None:
        self._blocks = [np.load(file, mmap_mode="r") for file in files]
        self._block_size = block_size

    def gather(self, nodes: np.ndarray) -> Tensor:
        """(k,) int64 → (k, width) float32."""
        out = np.empty((len(nodes), self._blocks[0].shape[1]), np.float32)
        order = np.argsort(nodes)
        cuts = np.searchsorted(nodes[order], np.arange(len(self._blocks) + 1) * self._block_size)
        for number in np.flatnonzero(np.diff(cuts)):
            mine = order[cuts[number] : cuts[number + 1]]
            out[mine] = self._blocks[number][nodes[mine] - number * self._block_size]
        return torch.from_numpy(out)


@ray.remote(num_cpus=1)
def _compute_block(job: Job, stage: int, index: int) -> int:
    device = torch.device(job.device)
    trained = TrainedModel.open(job.checkpoint, device)
    forward = trained.forward(job.store, job.fanouts, job.options.seed)
    nodes = job.block(index)
    check = partial(_check_finite, job, nodes)
    if stage == 0 and job.stages > 1:
        values = forward.fuse(nodes)
        for m, z in zip(trained.widths, values.chunk(len(trained.widths), 1), strict=True):
            check(z, f"the embedding of modality {m!r}")
    elif job.stages == 1:
        values = forward.states(nodes)
        check(values, "the state")
    else:
        files = [on_this_host(job.parts.activations(stage - 1, i)) for i in range(job.parts.num_parts)]
        values = forward.layer(stage - 1, nodes, Activations(files, job.parts.block_size).gather)
        check(values, f"the state in layer {stage}")
    if stage < job.stages - 1:
        job.parts.write_activations(stage, index, _numpy(values))
        return len(nodes)
    columns = {"id": pa.array(job.store.ids(nodes))}
    if isinstance(job.options, EmbedOptions):
        columns |= _embedding_columns(job.options, values, forward, nodes, check)
    else:
        columns |= _prediction_columns(job.options, trained, values, check)
    job.parts.write_part(index, pa.table(columns))
    return len(nodes)


def _check_finite(job: Job, nodes: np.ndarray, values: Tensor, what: str) -> None:
    """Raise ``Diverged`` for the first of ``nodes`` (k,) whose row of ``values`` (k, …) holds NaN or infinity."""
    bad = (~values.isfinite()).flatten(1).any(1)
    if bad.any():
        node, count = job.store.ids(nodes[[int(bad.int().argmax())]])[0], int(bad.sum())
        more = f" (and of {count - 1:,} more computed with it)" if count > 1 else ""
        raise Diverged(
            f"{what} of node {node!r}{more} is not finite: its numbers, or a neighbour's, lie far beyond those "
            f"that {job.checkpoint} was trained on, or training had diverged; look at its features, or train again"
        )


def _embedding_columns(
    options: EmbedOptions, hidden: Tensor, forward: LayerwiseForward, nodes: np.ndarray, check: Check
) -> dict[str, pa.Array]:
    columns = {"embedding": _lists(_numpy(hidden), options.dtype)}
    if options.per_modality:
        present = forward.present(nodes)
        for name, embedding in forward.encode(nodes).items():
            here = present[name].to(embedding.device)
            check(embedding.masked_fill(~here[:, None], 0), f"the embedding of modality {name!r}")
            columns[f"embedding:{name}"] = _lists(_numpy(embedding), options.dtype, absent=~_numpy(here))
    return columns


def _prediction_columns(
    options: PredictOptions, trained: TrainedModel, hidden: Tensor, check: Check
) -> dict[str, pa.Array]:
    with torch.inference_mode():
        scores = trained.classifier.linear(hidden)
    check(scores, "a class's score")
    probabilities = _numpy(scores.softmax(dim=1))
    best = probabilities.argmax(axis=1)
    columns = {
        "label": pa.array(trained.classes).take(pa.array(best)),
        "probability": pa.array(probabilities[np.arange(len(best)), best]),
    }
    if options.probabilities:
        columns["probabilities"] = _lists(probabilities, "float32")
    return columns


def _lists(values: np.ndarray, dtype: str, absent: np.ndarray | None = None) -> pa.Array:
    with np.errstate(over="ignore"):
        flat = values.astype(dtype).ravel()
    if np.isinf(flat).any():
        raise InputError("an embedding lies beyond the range of float16; write it with dtype=float32")
    if absent is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
    # Of no fixed size: pyarrow before 26 does not read such lists back from Parquet where some are missing.
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1], mask=pa.array(absent))
    return lists.cast(pa.list_(lists.type.value_type))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _run(job: Job, missing: list[list[int]]) -> Generator[int, None, None]:
    """Rows of each block as it finishes, stage after stage; leaving early cancels what is still out."""
    job_ref = ray.put(job)
    compute = _compute_block.options(num_gpus=1) if job.device == "cuda" else _compute_block
    for stage, indices in enumerate(missing):
        slots = task_slots(partial(compute.remote, job_ref, stage))
        with closing(completed(slots, indices)) as tasks:
            for index, task in tasks:
                try:
                    rows = ray.get(task)
                except ray.exceptions.RayError as error:
                    raise _failed(job, stage, index, error) from error
                yield rows
        # Two layers on the disk at once, never more.
        if 0 < stage < job.stages - 1:
            for index in range(job.parts.num_parts):
                remove(job.parts.activations(stage - 1, index))


def _failed(job: Job, stage: int, index: int, error: Exception) -> Exception:
    first, last = job.store.ids(job.block(index)[[0, -1]])
    where = f"block {index} of {job.parts.num_parts} (nodes {first!r} to {last!r}), stage {stage + 1} of {job.stages}"
    ours = explained(error)
    if isinstance(ours, InputError | Diverged):
        return type(ours)(f"{where}: {ours}")
    return RunError(
        f"{where} failed; what is finished stays in {job.parts.path}, the same command goes on.\n{ours or error}"
    )
