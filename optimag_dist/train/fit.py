"""Fits one model: one variant, one seed, on this process's rank. Knows torch.distributed, not Ray.

Everything random is a pure function of (seed, epoch, step, rank): a fit resumed from a checkpoint, which may lie within
an epoch, ends with the same weights, bit for bit on the CPU, as one that was never stopped.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
from optimag_dist.sampling import GraphRows, GroupLoader, SamplingOptions, SeedBatcher, StoreRows
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassification
from optimag_dist.train import checkpoint
from optimag_dist.train.agreement import Agreement
from optimag_dist.train.epoch import EpochTotals
from optimag_dist.train.host import Host, Wish
from optimag_dist.train.log import FitLog
from optimag_dist.train.options import VariantConfig, fingerprint
from optimag_dist.train.step import StepLoss, align
from optimag_dist.types import InputError
from optimag_dist.ufgw import REMEDIES, UFGWRegulariser

Batch = TypeVar("Batch")
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
    host: Host | None = None,
    rows: GraphRows | None = None,
) -> dict[str, Any] | None:
    """Train, choose the best epoch on the validation nodes, test it, and leave the files behind.

    A finished fit is not repeated; an unfinished one goes on from its checkpoint.

    Args:
        fit: what to train; every rank gets the same.
        store, ppr: the data; ``ppr`` may be None where the regulariser is off.
        worker: this process's rank; with more than one, torch.distributed must be initialised.
        host: is told how the fit goes and may ask it to save or to stop; default: nobody.
        rows: where neighbours and features come from; default: the store, mapped on this host.

    Returns:
        The result, the same on every rank (also in ``result.json``): variant, seed, epochs, and val/test metrics.
        None where the host has stopped the fit; another call goes on from the same step. A wish to stop that comes
        after the last step of training is too late.
    """
    host = host or Host()
    finished = fit.directory / "result.json"
    if finished.exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    fitting = _Fitting(fit, store, ppr, worker, rows or StoreRows(store), host)
    fitting.resume()
    with FitLog(fit.directory, fitting.epoch) if worker.rank == 0 else contextlib.nullcontext() as log:
        for record in fitting.epochs():
            if log is not None:
                log.write(record)
                host.saved(log.path)
            host.epoch(record)
    if fitting.stopped:
        return None
    result = fitting.finish()
    if worker.rank == 0:
        with atomic(finished) as temporary:
            temporary.write_text(json.dumps(result, indent=2), encoding="utf-8")
        host.saved(finished)
    _barrier(worker)
    return result


class _Fitting:
    """The state of one fit: weights, optimiser, the best weights so far, and the position in training."""

    def __init__(
        self, fit: Fit, store: GraphStore, ppr: PPRArtefact | None, worker: Worker, rows: GraphRows, host: Host
    ) -> None:
        config = fit.config
        self._host = host
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
        self._loader = self._make_loader(config.sampling, messages=self._model.passes_messages)
        self._batcher = self._make_batcher(self._task.train, config.sampling)
        self.epoch = 0
        self.stopped = False
        self._totals = EpochTotals()
        self._saved_at = time.monotonic()
        self._best: dict[str, Any] = {"metrics": None, "epoch": -1, "weights": None}
        self._evaluations_since_best = 0
        self._advice: list[str] = []
        self._fingerprint = fingerprint(config, fit.seed)

    def _make_loader(self, sampling: SamplingOptions, *, messages: bool) -> GroupLoader:
        return GroupLoader(
            self._rows,
            self._ppr,
            self._task.labels,
            sampling,
            seed=self._fit.seed,
            messages=messages,
            rank=self._worker.rank,
            world_size=self._worker.world_size,
            pin_memory=self._worker.device.type == "cuda",
        )

    def _make_batcher(self, nodes: np.ndarray, sampling: SamplingOptions) -> SeedBatcher:
        return SeedBatcher(
            nodes,
            self._store.num_nodes,
            self._ppr,
            sampling,
            seed=self._fit.seed,
            fill=self._ppr is not None,
        )

    # -- training ------------------------------------------------------------------------------------------------

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end, one record per epoch; checkpoints on the way. Ends early, ``stopped``, if so wished."""
        with Agreement(self._worker.world_size) as agreement:
            while self.epoch < self._options.epochs and self._evaluations_since_best < self._options.patience:
                self._train_epoch(agreement)
                if self.stopped:
                    return
                record = self._end_epoch()
                last = self.epoch == self._options.epochs
                if self.epoch % self._options.eval_every == 0 or last:
                    metrics = self._evaluate(self._task.val, "evaluate")
                    record |= {f"val/{name}": value for name, value in metrics.items()}
                    self._keep_if_best(metrics)
                yield record
                if self.epoch % self._options.checkpoint_every == 0 or last:
                    self._save()

    def _train_epoch(self, agreement: Agreement) -> None:
        """The steps from the position in the epoch to its end, or to a wish to stop."""
        self._step_loss.train()
        totals, device = self._totals, self._worker.device
        totals.start_clock()
        batches = self._loader.epoch(self._batcher, self.epoch, first_step=totals.steps)
        with contextlib.closing(batches):
            for cpu_batch in self._beating("load", totals.timed(batches), totals.steps):
                self._host.beat("step", self.epoch, cpu_batch.step)
                batch = cpu_batch.to(device)
                # Dropout depends on the position alone, so a resumed fit draws what an unbroken one would have drawn.
                torch.manual_seed(_mix(self._fit.seed, self.epoch, batch.step, self._worker.rank))
                self._optimiser.zero_grad(set_to_none=True)
                loss, figures = self._parallel(batch)
                loss.backward()
                self._optimiser.step()
                totals.add(batch, figures)
                agreed = agreement.reached()
                if agreed >= Wish.SAVE:
                    self._save()
                if agreed == Wish.STOP:
                    self.stopped = True
                    return
                agreement.ask(self._wish())

    def _wish(self) -> Wish:
        wish = self._host.wish()
        due = self._worker.rank == 0 and time.monotonic() - self._saved_at > self._options.checkpoint_every_s
        return max(wish, Wish.SAVE) if due else wish

    def _end_epoch(self) -> dict[str, Any]:
        """The epoch's record; the position moves on to the next epoch."""
        # One wait for the device per epoch, none per step.
        sums, seconds = self._totals.over_ranks(self._totals_of_ranks())
        steps, groups = self._totals.steps, self._totals.groups
        record = {
            "epoch": self.epoch,
            "loss": (sums["task_loss"] + sums["alignment"]) / steps,
            "task_loss": sums["task_loss"] / steps,
            "steps": steps,
            "seconds": seconds["seconds"],
            "wait_s": seconds["wait_s"],
            "anchors_per_s": self._totals.anchors / seconds["seconds"],
        }
        if self._step_loss.regulariser is not None:
            record |= {"alignment": sums["alignment"] / steps, "kept_ppr": sums["kept_ppr"] / steps}
            record |= {"ufgw_s": seconds["ufgw_s"], "seeds_per_s": sums["seeds"] / seconds["seconds"]}
            record |= {
                f"kept_mass/{m}": sums[f"kept/{m}"] / sums[f"nodes/{m}"] for m in self._widths if sums[f"nodes/{m}"]
            }
            signs = {sign: sums[f"sign/{sign}"] / groups for sign in REMEDIES if f"sign/{sign}" in sums}
            record |= {f"transport/{sign}": share for sign, share in signs.items()}
            self._advice = [REMEDIES[sign] for sign, share in signs.items() if share > _WORTH_TELLING]
        self.epoch += 1
        self._totals = EpochTotals()
        return record

    def _beating(self, phase: str, batches: Iterable[Batch], first: int = 0) -> Iterator[Batch]:
        """``batches``, with a beat before each is waited for."""
        remaining = iter(batches)
        for step in itertools.count(first):
            self._host.beat(phase, self.epoch, step)
            batch = next(remaining, None)
            if batch is None:
                return
            yield batch

    @torch.no_grad()
    def _evaluate(self, nodes: np.ndarray, phase: str) -> dict[str, float]:
        self._step_loss.eval()
        metrics = self._task.metrics(self._worker.device)
        for cpu_batch in self._beating(phase, self._loader.cover(nodes, _EVALUATION_CHUNK)):
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
        if state["totals"] is not None:
            self._totals = EpochTotals.restored(state["totals"], self._worker.rank, self._worker.world_size)

    def _save(self) -> None:
        path = self._fit.directory / "checkpoint.pt"
        self._host.beat("save", self.epoch, self._totals.steps)
        totals = self._totals.state(self._totals_of_ranks()) if self._totals.steps else None
        if self._worker.rank == 0:
            state = {
                "fingerprint": self._fingerprint,
                "store": self._store.content_hash,
                "model": self._model.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "epoch": self.epoch,
                "totals": totals,
                "best": self._best,
                "evaluations_since_best": self._evaluations_since_best,
                "advice": self._advice,
            }
            checkpoint.save(path, state)
            self._host.saved(path)
        # No rank may run ahead of the checkpoint it would be resumed from.
        _barrier(self._worker)
        self._saved_at = time.monotonic()

    def finish(self) -> dict[str, Any]:
        """Test the best weights, save them, and export every node's kept mass."""
        if self._best["metrics"] is None:
            # Resumed with fewer epochs than the first evaluation waits for.
            self._keep_if_best(self._evaluate(self._task.val, "evaluate"))
        self._model.load_state_dict(self._best["weights"])
        test = self._evaluate(self._task.test, "test")
        kept_mass = self._kept_mass_of_all_nodes()
        if self._worker.rank == 0:
            model = {
                "model": self._model.state_dict(),
                "config": self._fit.config.model_dump(mode="json"),
                "widths": self._widths,
                "classes": list(self._store.classes),
                "store": self._store.content_hash,
                "seed": self._fit.seed,
            }
            path = self._fit.directory / "model.pt"
            checkpoint.save(path, model)
            self._host.saved(path)
            if kept_mass is not None:
                ids = self._store.ids(np.arange(self._store.num_nodes))
                path = self._fit.directory / "kept_mass.parquet"
                with atomic(path) as temporary:
                    pq.write_table(pa.table({"id": ids, **kept_mass}), temporary)
                self._host.saved(path)
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
        """Modality → (n,) float32 kept mass in the group that a node is an anchor of; NaN where it is absent."""
        regulariser = self._step_loss.regulariser
        if regulariser is None or self._options.kept_mass == "none":
            return None
        self._step_loss.eval()
        names = list(self._store.modalities)
        kept = torch.zeros(len(names), self._store.num_nodes, device=self._worker.device)
        judging = self._fit.config.sampling.for_judging
        batcher = self._make_batcher(np.arange(self._store.num_nodes), judging)
        for batch in self._beating("export", self._make_loader(judging, messages=False).epoch(batcher, epoch=0)):
            for group in batch.to(self._worker.device).groups:
                anchors = group.node_ids[group.seed_rows[: group.num_anchors]]
                _, kept_mass = align(regulariser, self._model.encode(group.features), group)
                for m, name in enumerate(names):
                    kept[m, anchors] = kept_mass[name][: group.num_anchors]
        if self._worker.world_size > 1:
            # Every node is an anchor on one rank and 0 on the others.
            dist.all_reduce(kept)
        return dict(zip(names, kept.cpu().numpy(), strict=True))

    def _totals_of_ranks(self) -> Tensor:
        """(world_size, figures) float64; waits for the device."""
        self._totals.ufgw_s += self._step_loss.ufgw_time.take()
        mine = self._totals.pack().to(self._worker.device)
        if self._worker.world_size == 1:
            return mine[None]
        ranks = [torch.empty_like(mine) for _ in range(self._worker.world_size)]
        dist.all_gather(ranks, mine)
        return torch.stack(ranks)


def _mix(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _barrier(worker: Worker) -> None:
    if worker.world_size > 1:
        dist.barrier()
