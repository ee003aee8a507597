"""Encodes an attribute of every node by a pretrained network, with actors of Ray Data over blocks of nodes.

.OUT.encode/KEY/part-000000.arrow …   a block's features, kept while the run is not finished; KEY says of what

Blocks are computed in any order, and the driver writes each to a part of its own as it arrives. At the end the store
appears at once, with the parts as a modality of it, and the parts go.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from optimag_dist.encoding.block import BAD, PRESENT, BlockEncoder, EncodeOptions
from optimag_dist.files import atomic
from optimag_dist.models.encoder_networks import digest
from optimag_dist.progress_bar import progress_bar
from optimag_dist.ray_session import ensure_ray, explained, task_device
from optimag_dist.remote_copies import MANIFEST
from optimag_dist.sampling.pictures import bad_picture_error, told_bad_pictures
from optimag_dist.storage import AnyPath, RemotePath, is_file
from optimag_dist.store import GraphStore
from optimag_dist.store.arrow_files import digest_of
from optimag_dist.store.derive import add_modality, check_modality_name
from optimag_dist.store.layout import Modality
from optimag_dist.store.staging import destination, holds, make_store, put_in_place, staging
from optimag_dist.types import InputError, RunError

_KEY = "optimag_encode"
_DIGEST = b"digest"


@dataclass(frozen=True)
class Job:
    """What all blocks of one run have in common; ``key`` is of everything that decides the numbers."""

    store: GraphStore
    options: EncodeOptions
    modality: Modality
    key: str

    @classmethod
    def of(cls, store: GraphStore, options: EncodeOptions) -> "Job":
        """Loads the network, and so finds out whether it can be loaded and fits."""
        check_modality_name(store, options.modality)
        encoder = BlockEncoder(store, options, torch.device("cpu"))
        reader, network = encoder.reader.settings, digest(encoder.network)
        what = {"store": store.content_hash, "network": network, "reader": reader}
        how = options.model_dump(mode="json", exclude={"model", "on_bad_picture", "concurrency", "device"})
        key = hashlib.sha256(json.dumps({**what, **how}, sort_keys=True).encode()).hexdigest()[:32]
        modality = Modality(name=options.modality, width=encoder.width, dtype=options.dtype)
        return cls(store, options, modality, key)

    @property
    def num_blocks(self) -> int:
        return -(-self.store.num_nodes // self.options.block_size)

    def nodes(self, block: int) -> np.ndarray:
        first = block * self.options.block_size
        return np.arange(first, min(first + self.options.block_size, self.store.num_nodes))


def encode(
    store: GraphStore,
    out: str | AnyPath,
    options: EncodeOptions,
    *,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> GraphStore:
    """Write ``store`` with a modality of pretrained features of one of its attributes to ``out``.

    The features are what the network pools, see :mod:`optimag_dist.models.pretrained`; nodes without the attribute lack
    the modality. They do not depend on ``concurrency``, and on ``block_size`` and ``batch_size`` only by rounding. All
    other files are hard links to those of ``store``; its PPR and partitions stay behind. A killed run goes on from the
    blocks it has finished, and one that has ended is not repeated. Store and model must mean the same files on every
    Ray node, as URIs and hub ids do. ``InputError``: store, attribute and model do not fit together, ``out`` is taken
    or is ``store`` itself, a picture does not decode and that is an error, no node has the attribute, or the disk is
    full. ``RunError``: a block failed. What was finished before stays, and the next call goes on from there.

    Args:
        out: a folder to be made; for a URI it is made in this host's cache, and sent when it is whole.
        overwrite: replace a store of other content (or a damaged one) that stands at ``out``.
    """
    place = destination(out, store)
    job = Job.of(store, options)
    if (standing := _made(place, job)) is not None:
        say(f"{place}: holds these very features already; left as it is")
        return standing
    if isinstance(place, RemotePath) and not overwrite and is_file(place / MANIFEST):
        raise InputError(
            f"{place}: holds another graph, or half of one; name another folder, or ask for the old one to be "
            "overwritten (overwrite)"
        )
    return make_store(place, partial(_make, job, progress, say), overwrite, say)


def _made(place: AnyPath, job: Job) -> GraphStore | None:
    """The store at ``place`` if it is what ``job`` makes."""
    try:
        standing = GraphStore.open(place)
    except InputError:
        return None
    name = job.modality.name
    return standing if name in standing.modalities and standing.notes(name).get(_KEY) == job.key else None


def _make(job: Job, progress: bool, say: Callable[[str], None], target: Path, overwrite: bool) -> GraphStore:
    # No store has no hash: what stands in the way is told before the work, not after it.
    holds(target, "", overwrite)
    parts = target.parent / f".{target.name}.encode"
    features = job.store.num_nodes * job.modality.width * np.dtype(job.modality.dtype).itemsize
    # The features stand twice on the disk for a while, and the rest does where there are no hard links.
    needed = 2 * features + sum(file.stat().st_size for file in job.store.path.glob("*.arrow"))
    with staging(target, job.key, needed, say) as stage:
        # A process that this one waited for may have made it.
        if (standing := _made(target, job)) is not None:
            return standing
        mine = parts / job.key
        mine.mkdir(parents=True, exist_ok=True)
        for other in parts.iterdir():
            if other != mine:
                shutil.rmtree(other)
        _compute(job, mine, progress)
        _tell_bad_pictures(job, mine, say)
        made_from = {_KEY: job.key, "options": job.options.model_dump_json(), "store": job.store.content_hash}
        made = add_modality(job.store, job.modality, _blocks(job, mine), stage.store, made_from)
        put_in_place(stage, made.content_hash, target, overwrite, say)
        # Within the lock: a process that waits for it may be about other features.
        shutil.rmtree(parts)
    return GraphStore.open(target)


def _part(folder: Path, block: int) -> Path:
    return folder / f"part-{block:06d}.arrow"


def _compute(job: Job, folder: Path, progress: bool) -> None:
    missing = [block for block in range(job.num_blocks) if not _is_whole(job, folder, block)]
    if not missing:
        return
    ensure_ray()
    done = job.store.num_nodes - sum(len(job.nodes(block)) for block in missing)
    with progress_bar(f"encode {job.modality.name}", job.store.num_nodes, done=done, wanted=progress) as advance:
        for block, content in _encoded(job, missing):
            with atomic(_part(folder, block)) as temporary:
                temporary.write_bytes(content)
            advance(len(job.nodes(block)))


def _encoded(job: Job, blocks: list[int]) -> Iterator[tuple[int, bytes]]:
    needs = {"num_gpus": 1} if task_device(job.options.device) == "cuda" else {"num_cpus": 1}
    context = ray.data.DataContext()
    context.enable_progress_bars = context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        encoded = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            _Encode,
            fn_constructor_args=(job, "cuda" if "num_gpus" in needs else "cpu"),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=job.options.concurrency),
            **needs,
        )
    log = logging.getLogger("ray.data")
    level = log.level
    # Its account of every run; what goes wrong is told below.
    log.setLevel(logging.CRITICAL)
    try:
        for row in encoded.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield row["block"], row["part"]
    except ray.exceptions.RayError as error:
        raise RunError(
            f"encoding {job.modality.name!r} failed; what is finished is kept, and the same command goes on.\n"
            f"{explained(error) or error}"
        ) from error
    finally:
        log.setLevel(level)


class _Encode:
    """An actor of Ray Data: the number of a block → its part, or what is wrong with the input."""

    def __init__(self, job: Job, device: str) -> None:
        self._job, self._device = job, device

    @cached_property
    def _encoder(self) -> BlockEncoder:
        return BlockEncoder(self._job.store, self._job.options, torch.device(self._device))

    def __call__(self, batch: pa.Table) -> pa.Table:
        (block,) = batch.column(0).to_pylist()
        stream, problem = pa.BufferOutputStream(), ""
        try:
            batch = self._encoder.encode(self._job.nodes(block))
            batch = batch.replace_schema_metadata({_DIGEST: digest_of([batch])})
            with pa.ipc.new_file(stream, batch.schema) as file:
                file.write_batch(batch)
        except InputError as error:
            problem = str(error)
        part = pa.array([stream.getvalue().to_pybytes()], pa.large_binary())
        return pa.table({"block": [block], "part": part, "error": [problem]})


def _is_whole(job: Job, folder: Path, block: int) -> bool:
    try:
        batch = _read(folder, block)
        batch.validate(full=True)
        recorded = (batch.schema.metadata or {}).get(_DIGEST)
        return batch.num_rows == len(job.nodes(block)) and recorded == digest_of([batch]).encode()
    except (OSError, pa.ArrowException, LookupError, ValueError, MemoryError):
        return False


def _read(folder: Path, block: int) -> pa.RecordBatch:
    with pa.memory_map(str(_part(folder, block))) as source:
        return pa.ipc.open_file(source).get_batch(0)


def _blocks(job: Job, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for block in range(job.num_blocks):
        batch = _read(folder, block)
        values = batch.column("features").flatten().to_numpy(zero_copy_only=True).reshape(-1, job.modality.width)
        yield values, batch.column("state").to_numpy() == PRESENT


def _tell_bad_pictures(job: Job, folder: Path, say: Callable[[str], None]) -> None:
    states = np.concatenate([_read(folder, block).column("state").to_numpy() for block in range(job.num_blocks)])
    bad = np.flatnonzero(states == BAD)
    if len(bad) and job.options.on_bad_picture == "error":
        raise bad_picture_error(job.store, job.options.attribute, bad[0], "on_bad_picture")
    if len(bad):
        say(told_bad_pictures(job.store, job.options.attribute, bad.tolist()))
