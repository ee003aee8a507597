"""Fits one model: one variant, one seed, on this process's rank. Knows torch.distributed, not Ray.

Everything random is a pure function of (seed, epoch, step, rank): a fit resumed from a checkpoint ends with the same
weights, bit for bit on the CPU, as one that was never stopped.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from optimag_dist.files import atomic
from optimag_dist.models import MultimodalModel
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GraphRows, GroupLoader, SeedBatcher, StoreRows
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassification
from optimag_dist.train import checkpoint
from optimag_dist.train.log import FitLog
from optimag_dist.train.options import VariantConfig, fingerprint
from optimag_dist.train.step import StepLoss, align
from optimag_dist.types import InputError
from optimag_dist.ufgw import REMEDIES, UFGWRegulariser

_EVALUATION_CHUNK = 512
# A sign of useless plans seen in more than this share of an epoch's transport problems is told with the result.
_WORTH_TELLING = 0.5


@dataclass(frozen=True)
class Fit:
    """What to fit and where its files go: ``metrics.jsonl``, ``checkpoint.pt``, ``model.pt``, ``result.json``."""

    variant: str
    seed: int
    config: VariantConfig
    directory: Path


@dataclass(frozen=True)
class Worker:
    """This process's place among the DDP workers."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def run_fit(
    fit: Fit,
    store: GraphStore,
    ppr: PPRArtefact | None,
    worker: Worker,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    rows: GraphRows | None = None,
) -> dict[str, Any]:
    """Train, choose the best epoch on the validation nodes, test it, and leave the files behind.

    A finished fit is not repeated; an unfinished one goes on from its checkpoint.

    Args:
        fit: what to train; every rank gets the same.
        store, ppr: the data; ``ppr`` may be None where the regulariser is off.
        worker: this process's rank; with more than one, torch.distributed must be initialised.
        on_epoch: called on every rank after every epoch with its record.
        rows: where neighbours and features come from; default: the store, mapped on this host.

    Returns:
        The result, the same on every rank (also in ``result.json``): variant, seed, epochs, and val/test metrics.
    """
    finished = fit.directory / "result.json"
    if finished.exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    fitting = _Fitting(fit, store, ppr, worker, rows or StoreRows(store))
    fitting.resume()
    with FitLog(fit.directory, fitting.epoch) if worker.rank == 0 else contextlib.nullcontext() as log:
        for record in fitting.epochs():
            if log is not None:
                log.write(record)
            on_epoch(record)
    result = fitting.finish()
    if worker.rank == 0:
        with atomic(finished) as temporary:
            temporary.write_text(json.dumps(result, indent=2), encoding="utf-8")
    _barrier(worker)
    return result


class _Fitting:
    """The state of one fit: weights, optimiser, the best weights so far, and the position in training."""

    def __init__(self, fit: Fit, store: GraphStore, ppr: PPRArtefact | None, worker: Worker, rows: GraphRows) -> None:
        config = fit.config
        self._fit, self._store, self._worker, self._rows = fit, store, worker, rows
        self._options = config.train
        self._task = NodeClassification(store, config.task, seed=fit.seed)
        torch.manual_seed(fit.seed)
        self._widths = {name: modality.width for name, modality in store.modalities.items()}
        self._model = MultimodalModel(self._widths, self._task.num_outputs, len(config.sampling.fanouts), config.model)
        regulariser = UFGWRegulariser(**config.regulariser.model_dump()) if config.needs_ppr else None
        if regulariser is not None and ppr is None:
            raise InputError("the regulariser needs a PPR artefact; compute one with: optimag ppr STORE")
        self._ppr = ppr if config.needs_ppr else None
        self._step_loss = StepLoss(self._model, regulariser, self._task, worker.world_size).to(worker.device)
        self._parallel: torch.nn.Module = self._step_loss
        if worker.world_size > 1:
            ids = [worker.device] if worker.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self._step_loss, device_ids=ids)
        self._optimiser = torch.optim.AdamW(
            self._model.parameters(), lr=self._options.lr, weight_decay=self._options.weight_decay
        )
        self._loader = self._make_loader(messages=self._model.passes_messages)
        self._batcher = self._make_batcher(self._task.train)
        self.epoch = 0
        self._best: dict[str, Any] = {"metrics": None, "epoch": -1, "weights": None}
        self._evaluations_since_best = 0
        self._advice: list[str] = []
        self._fingerprint = fingerprint(config, fit.seed)

    def _make_loader(self, *, messages: bool) -> GroupLoader:
        return GroupLoader(
            self._rows,
            self._ppr,
            self._task.labels,
            self._fit.config.sampling,
            seed=self._fit.seed,
            messages=messages,
            rank=self._worker.rank,
            world_size=self._worker.world_size,
            pin_memory=self._worker.device.type == "cuda",
        )

    def _make_batcher(self, nodes: np.ndarray) -> SeedBatcher:
        return SeedBatcher(
            nodes,
            self._store.num_nodes,
            self._ppr,
            self._fit.config.sampling,
            seed=self._fit.seed,
            fill=self._ppr is not None,
        )

    # -- training ------------------------------------------------------------------------------------------------

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end, one record per epoch; checkpoints on the way."""
        while self.epoch < self._options.epochs and self._evaluations_since_best < self._options.patience:
            record = self._train_epoch()
            self.epoch += 1
            last = self.epoch == self._options.epochs
            if self.epoch % self._options.eval_every == 0 or last:
                metrics = self._evaluate(self._task.val)
                record |= {f"val/{name}": value for name, value in metrics.items()}
                self._keep_if_best(metrics)
            yield record
            if self.epoch % self._options.checkpoint_every == 0 or last:
                self._save()

    def _train_epoch(self) -> dict[str, Any]:
        self._step_loss.train()
        start, anchors = time.perf_counter(), 0
        steps, groups, kept_ppr = 0, 0, 0.0
        totals: dict[str, Tensor] = {}
        for cpu_batch in self._loader.epoch(self._batcher, self.epoch):
            batch = cpu_batch.to(self._worker.device)
            # Dropout depends on the position alone, so a resumed fit draws what an unbroken one would have drawn.
            torch.manual_seed(_mix(self._fit.seed, self.epoch, batch.step, self._worker.rank))
            self._optimiser.zero_grad(set_to_none=True)
            loss, figures = self._parallel(batch)
            loss.backward()
            self._optimiser.step()
            totals = {name: totals.get(name, 0) + value for name, value in figures.items()}
            kept_ppr += sum(group.kept_ppr for group in batch.groups) / batch.num_groups
            anchors += batch.num_anchors
            groups += batch.num_groups
            steps += 1
        totals["kept_ppr"] = torch.tensor(kept_ppr, device=self._worker.device)
        # One wait for the device per epoch, none per step.
        sums = dict(zip(totals, self._sum(torch.stack([t.double() for t in totals.values()])).tolist(), strict=True))
        seconds = time.perf_counter() - start
        record = {
            "epoch": self.epoch,
            "loss": (sums["task_loss"] + sums["alignment"]) / steps,
            "task_loss": sums["task_loss"] / steps,
            "seconds": seconds,
            "anchors_per_s": anchors / seconds,
        }
        if self._step_loss.regulariser is not None:
            record |= {"alignment": sums["alignment"] / steps, "kept_ppr": sums["kept_ppr"] / steps}
            record |= {
                f"kept_mass/{m}": sums[f"kept/{m}"] / sums[f"nodes/{m}"] for m in self._widths if sums[f"nodes/{m}"]
            }
            signs = {sign: sums[f"sign/{sign}"] / groups for sign in REMEDIES}
            record |= {f"transport/{sign}": share for sign, share in signs.items()}
            self._advice = [REMEDIES[sign] for sign, share in signs.items() if share > _WORTH_TELLING]
        return record

    @torch.no_grad()
    def _evaluate(self, nodes: np.ndarray) -> dict[str, float]:
        self._step_loss.eval()
        metrics = self._task.metrics(self._worker.device)
        for cpu_batch in self._loader.cover(nodes, _EVALUATION_CHUNK):
            batch = cpu_batch.to(self._worker.device)
            metrics.update(self._model.predict(self._model.encode(batch.features), batch), batch.labels)
        return {name: float(value) for name, value in metrics.compute().items()}

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        best = self._best["metrics"]
        if best is None or metrics[self._task.decisive] > best[self._task.decisive]:
            weights = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
            self._best = {"metrics": metrics, "epoch": self.epoch - 1, "weights": weights}
            self._evaluations_since_best = 0
        else:
            self._evaluations_since_best += 1

    # -- files ---------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up the fit's checkpoint where there is one.

        Raises:
            InputError: the checkpoint is damaged, or of another configuration, seed or graph.
        """
        path = self._fit.directory / "checkpoint.pt"
        if not path.exists():
            return
        state = checkpoint.load(path, self._worker.device)
        for what, mine in (("fingerprint", self._fingerprint), ("store", self._store.content_hash)):
            if state[what] != mine:
                raise InputError(
                    f"{path}: made by another {'configuration' if what == 'fingerprint' else 'graph'}; train under "
                    f"another name, or delete {self._fit.directory} to start over"
                )
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.epoch, self._best = state["epoch"], state["best"]
        self._evaluations_since_best = state["evaluations_since_best"]
        self._advice = state["advice"]

    def _save(self) -> None:
        if self._worker.rank == 0:
            state = {
                "fingerprint": self._fingerprint,
                "store": self._store.content_hash,
                "model": self._model.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "epoch": self.epoch,
                "best": self._best,
                "evaluations_since_best": self._evaluations_since_best,
                "advice": self._advice,
            }
            checkpoint.save(self._fit.directory / "checkpoint.pt", state)
        # No rank may run ahead of the checkpoint it would be resumed from.
        _barrier(self._worker)

    def finish(self) -> dict[str, Any]:
        """Test the best weights, save them, and export every node's kept mass."""
        self._model.load_state_dict(self._best["weights"])
        test = self._evaluate(self._task.test)
        kept_mass = self._kept_mass_of_all_nodes()
        if self._worker.rank == 0:
            model = {
                "model": self._model.state_dict(),
                "config": self._fit.config.model_dump(mode="json"),
                "widths": self._widths,
                "classes": list(self._store.classes),
                "store": self._store.content_hash,
            }
            checkpoint.save(self._fit.directory / "model.pt", model)
            if kept_mass is not None:
                ids = self._store.ids(np.arange(self._store.num_nodes))
                with atomic(self._fit.directory / "kept_mass.parquet") as temporary:
                    pq.write_table(pa.table({"id": ids, **kept_mass}), temporary)
        return {
            "variant": self._fit.variant,
            "seed": self._fit.seed,
            "epochs": self.epoch,
            "best_epoch": self._best["epoch"],
            **{f"val/{name}": value for name, value in self._best["metrics"].items()},
            **{f"test/{name}": value for name, value in test.items()},
            "advice": "\n".join(self._advice),
        }

    @torch.no_grad()
    def _kept_mass_of_all_nodes(self) -> dict[str, np.ndarray] | None:
        """Modality → (n,) float32 kept mass, the mean over the groups a node was in; NaN where it is absent."""
        regulariser = self._step_loss.regulariser
        if regulariser is None or self._options.kept_mass == "none":
            return None
        self._step_loss.eval()
        # Row m: sum of kept mass, row M + m: in how many groups.
        names = list(self._store.modalities)
        totals = torch.zeros(2 * len(names), self._store.num_nodes, dtype=torch.float64, device=self._worker.device)
        batcher = self._make_batcher(np.arange(self._store.num_nodes))
        for batch in self._make_loader(messages=False).epoch(batcher, epoch=0):
            for group in batch.to(self._worker.device).groups:
                seeds = group.node_ids[group.seed_rows]
                _, kept_mass = align(regulariser, self._model.encode(group.features), group)
                for m, name in enumerate(names):
                    totals[m].index_add_(0, seeds, kept_mass[name].nan_to_num().double())
                    totals[len(names) + m].index_add_(0, seeds, kept_mass[name].isfinite().double())
        totals = self._sum(totals)
        means = (totals[: len(names)] / totals[len(names) :]).float().cpu().numpy()
        return dict(zip(names, means, strict=True))

    def _sum(self, tensor: Tensor) -> Tensor:
        if self._worker.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def _mix(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _barrier(worker: Worker) -> None:
    if worker.world_size > 1:
        dist.barrier()
