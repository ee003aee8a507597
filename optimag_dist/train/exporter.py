"""What a trained fit leaves behind: its model, its result, the kept mass of every node, what was made for nodes."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from optimag_dist.files import atomic
from optimag_dist.sampling import FeaturelessRows, nodes_alone
from optimag_dist.sampling.pictures import told_bad_pictures
from optimag_dist.tasks import Evaluation, metric_of, monitor_of, notes_of, qualified
from optimag_dist.tasks.task import gather
from optimag_dist.train import checkpoint
from optimag_dist.train.callback import TrainerCallback, beats
from optimag_dist.train.checkpointer import Progress
from optimag_dist.train.parts import Parts, joined, made_from
from optimag_dist.train.regularisers import has_diagnostics
from optimag_dist.train.step import align_embeddings

# A loss of the task that is still above this share of what it was has not learned.
_IDLE = 0.98
# A loss that is so many times that of the first step has exploded.
_EXPLODED = 1e3


class Exporter:
    """Writes the files of a fit whose ``parts`` have the weights to keep; rank 0 writes, all ranks call."""

    def __init__(self, parts: Parts, callback: TrainerCallback) -> None:
        self._parts, self._callback = parts, callback

    def export(self, progress: Progress, tested: Mapping[str, Evaluation]) -> dict[str, Any]:
        """Write all but ``result.json``, and return what that is to say.

        Args:
            tested: task → evaluation of its test part.
        """
        parts = self._parts
        for name, evaluation in tested.items():
            if evaluation.outputs is not None:
                self._write_table(f"outputs-{name}.parquet" if name else "outputs.parquet", evaluation.outputs)
        kept_mass = self._kept_mass(progress.epoch)
        advice = [
            *progress.advice,
            *self._told_agreement(),
            *self._told_idle(progress),
            *self._told_explosion(progress),
            *self._told_bad_pictures(),
        ]
        self._write_model()
        if kept_mass is not None:
            ids = parts.store.ids(np.arange(parts.store.num_nodes))
            self._write_table("kept_mass.parquet", pa.table({"id": ids, **kept_mass}))
        assert progress.best.metrics is not None
        return {
            "variant": parts.fit.variant,
            "seed": parts.fit.seed,
            "epochs": progress.epoch,
            "best_epoch": progress.best.epoch,
            "decisive": monitor_of(parts.fit.config.task),
            **{f"val/{name}": value for name, value in progress.best.metrics.items()},
            **{f"test/{name}": value for name, value in joined(tested).items()},
            "advice": "\n".join([*advice, *notes_of(parts.tasks)]),
            **made_from(parts.fit, parts.store),
        }

    def _write_model(self) -> None:
        parts = self._parts
        state = {
            "model": parts.model.state_dict(),
            "heads": {name: head.state_dict() for name, head in parts.heads.items()},
            "config": parts.fit.config.model_dump(mode="json"),
            "widths": parts.widths,
            "kinds": parts.kinds,
            "classes": list(parts.store.classes),
            "store": parts.store.content_hash,
            "seed": parts.fit.seed,
        }
        self._write("model.pt", lambda path: checkpoint.save(path, state))

    def _write_table(self, name: str, table: pa.Table) -> None:
        def write(path: Path) -> None:
            with atomic(path) as temporary:
                pq.write_table(table, temporary, write_page_checksum=True)

        self._write(name, write)

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        if self._parts.worker.rank == 0:
            write(self._parts.fit.directory / name)
            self._callback.on_save(self._parts.fit.directory / name)

    @torch.no_grad()
    def _kept_mass(self, epoch: int) -> dict[str, np.ndarray] | None:
        """Modality → (n,) float32 kept mass in the group that a node is a target of; NaN where it is absent, and where
        no neighbour is there to judge the node by."""
        parts = self._parts
        config, worker, regulariser = parts.fit.config, parts.worker, parts.regulariser
        if regulariser is None or not has_diagnostics(regulariser) or config.train.kept_mass == "none":
            return None
        parts.step_loss.eval()
        on_chunk = beats(self._callback, "export", epoch)
        everyone = np.arange(parts.store.num_nodes)
        forward = parts.forward(on_chunk, parts.masked_rows)
        # A node is in many groups, and is encoded once.
        embeddings, present = forward.encode(everyone), forward.present(everyone)
        kept = torch.zeros(len(embeddings), len(everyone), device=worker.device)
        sampling = config.sampling.for_kept_mass
        batcher = parts.make_batcher(everyone, sampling, filled=True)
        loader = parts.make_loader(FeaturelessRows(parts.rows), sampling, messages=False, filled=True)
        for batch in loader.epoch([(batcher, nodes_alone)], epoch=0):
            on_chunk()
            for group in batch.to(worker.device).groups:
                seeds = group.node_ids[group.seed_rows]
                here = {m: z[seeds.to(z.device)].to(worker.device) for m, z in embeddings.items()}
                there = {m: mask[seeds] for m, mask in present.items()}
                _, kept_mass = align_embeddings(regulariser, here, there, group.proximity)
                assert group.proximity is not None
                near = group.proximity.clone().fill_diagonal_(0)
                judged = near.sum(0) + near.sum(1) > 0
                for place, name in enumerate(embeddings):
                    found = torch.where(judged, kept_mass[name], torch.nan)
                    kept[place, seeds[: group.num_targets]] = found[: group.num_targets]
        if worker.world_size > 1:
            # Every node is a target on one rank and 0 on the others.
            dist.all_reduce(kept)
        return dict(zip(embeddings, kept.cpu().numpy(), strict=True))

    def _told_agreement(self) -> list[str]:
        """A sentence for each task whose classes say that the graph is not to be taken at its word."""
        return [f"regulariser: {each}" for each in self._parts.agreements if each.strength < 1]

    def _told_idle(self, progress: Progress) -> list[str]:
        """A sentence where nothing was learned: by the task's loss, or by a task that says what a guess would have."""
        remedy = "this is no finished fit: train for more epochs, or change optim.lr"
        first, last = progress.losses.get("task_first", 0.0), progress.losses.get("task_last", 0.0)
        told = []
        if first > 0 and last > _IDLE * first:
            told.append(
                f"training: the task's loss hardly moved, from {first:.3g} in the first epoch to {last:.3g} in epoch "
                f"{progress.epoch}; {remedy}"
            )
        for name, task in self._parts.tasks.items():
            metric, guess = qualified(name, task.monitor), task.guess
            assert progress.best.metrics is not None
            if guess is not None and metric_of(metric).sign * (progress.best.metrics[metric] - guess) <= 0:
                told.append(
                    f"training: the best val/{metric}, {progress.best.metrics[metric]:.3f}, is no better than "
                    f"{guess:.3f}, which the same answer for every node has; {remedy}"
                )
        return told

    def _told_explosion(self, progress: Progress) -> list[str]:
        """A sentence where the loss has grown beyond all use, though it is still a number."""
        first, largest, epoch = (progress.losses[name] for name in ("first", "largest", "epoch"))
        if largest <= _EXPLODED * first:
            return []
        return [
            f"training: the loss was {first:.3g} in the first step and {largest:.3g} in epoch {epoch + 1}: it has "
            f"diverged, though all is finite still; lower optim.lr (now {self._parts.fit.config.optim.lr:g})"
        ]

    def _told_bad_pictures(self) -> list[str]:
        """A sentence for each attribute that has some, over all ranks."""
        mine = [(bad.attribute, bad.nodes) for bad in self._parts.bad_pictures]
        nodes: dict[str, set[int]] = {}
        for attribute, met in itertools.chain.from_iterable(gather(mine)):
            nodes.setdefault(attribute, set()).update(met)
        return [told_bad_pictures(self._parts.store, attribute, met) for attribute, met in nodes.items() if met]
