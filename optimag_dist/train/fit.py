"""Fits one model: one variant, one seed, on this process's rank. Knows torch.distributed, not Ray.

Everything random is a pure function of (seed, epoch, step, rank): a fit resumed from a checkpoint, which may lie within
an epoch, ends with the same weights, bit for bit on the CPU, as one that was never stopped.
"""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from optimag_dist.files import atomic, sole_writer
from optimag_dist.integrity import write_record
from optimag_dist.models import MultimodalModel
from optimag_dist.models.pretrained import parameter_groups
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import (
    GraphRows,
    GroupLoader,
    HidingRows,
    RawRows,
    SamplingOptions,
    SeedBatcher,
    StoreRows,
    check_encoders,
    nodes_alone,
)
from optimag_dist.sampling.pictures import BadPictures, told_bad_pictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks import decisive_of, make_task, named, notes_of, qualified
from optimag_dist.tasks.metrics import metric_of
from optimag_dist.tasks.task import Part, gather_dict
from optimag_dist.train import checkpoint
from optimag_dist.train.agreement import Agreement
from optimag_dist.train.epoch import EpochTotals
from optimag_dist.train.evaluation import evaluate_part
from optimag_dist.train.host import Host, Wish
from optimag_dist.train.log import DIVERGED, RESULT, FitLog, read_result
from optimag_dist.train.options import VariantConfig, fingerprint
from optimag_dist.train.soundness import Soundness
from optimag_dist.train.step import StepLoss, align
from optimag_dist.types import Diverged, InputError
from optimag_dist.ufgw import REMEDIES, UFGWRegulariser

Batch = TypeVar("Batch")
# A sign of useless plans seen in more than this share of an epoch's transport problems is told with the result.
_WORTH_TELLING = 0.5
# A loss that is so many times that of the first step has exploded.
_EXPLODED = 1e3
# Steps after which it is looked whether all is finite, which waits for the device.
_LOOK_EVERY = 64
# The workers of a driver that was killed end within seconds; a network drive notices later that a host is gone.
_LEAVE_S = 120.0


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
        The result, the same on every rank (also in ``result.json``): variant, seed, epochs, val/test metrics, and the
        hashes of what it was made from.
        None where the host has stopped the fit; another call goes on from the same step. A wish to stop that comes
        after the last step of training is too late.

    Raises:
        Diverged: a loss, a gradient, a weight or what is evaluated is no longer finite, on all ranks alike. Nothing of
            it is kept: not as the best weights, not in a checkpoint.
    """
    host = host or Host()
    finished = fit.directory / RESULT
    if finished.exists():
        known = read_result(fit.directory) or {}
        _check_made_from(finished, known, fit, store)
        return known
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
    result = fitting.finish() | _made_from(fit, store)
    if worker.rank == 0:
        write_record(finished, result)
        host.saved(finished)
    _barrier(worker)
    return result


def try_fit(
    fit: Fit,
    store: GraphStore,
    ppr: PPRArtefact | None,
    worker: Worker,
    host: Host,
    rows: GraphRows | None = None,
) -> dict[str, Any] | None:
    """:func:`run_fit` among others that go on when this one diverges.

    Returns:
        The result, or, on every rank, what is also in ``diverged.json``: variant, seed, and what happened. A diverged
        fit is not finished: another call goes on from its last checkpoint.

    Raises:
        TimeoutError: workers of an earlier attempt (their driver was killed) are at work on the fit and do not end.
    """
    path = fit.directory / DIVERGED
    with sole_writer(fit.directory, patience_s=_LEAVE_S) if worker.rank == 0 else contextlib.nullcontext():
        # No rank may read what those of an earlier attempt are still writing.
        _barrier(worker)
        try:
            result = run_fit(fit, store, ppr, worker, host, rows)
        except Diverged as error:
            result = {"variant": fit.variant, "seed": fit.seed, "diverged": str(error)}
            if worker.rank == 0:
                write_record(path, result)
                host.saved(path)
            return result
        if worker.rank == 0:
            path.unlink(missing_ok=True)
        return result


def _made_from(fit: Fit, store: GraphStore) -> dict[str, str]:
    """What a checkpoint and a result say of where they come from."""
    return {"fingerprint": fingerprint(fit.config, fit.seed), "store": store.content_hash}


def _check_made_from(path: Path, made: Mapping[str, Any], fit: Fit, store: GraphStore) -> None:
    for what, mine in _made_from(fit, store).items():
        # Results of older versions do not say.
        if made.get(what, mine) != mine:
            raise InputError(
                f"{path}: made by another {'configuration' if what == 'fingerprint' else 'graph'}; train under another "
                f"name, or delete {fit.directory} to start over"
            )


class _Fitting:
    """The state of one fit: weights, optimiser, the best weights so far, and the position in training."""

    def __init__(
        self, fit: Fit, store: GraphStore, ppr: PPRArtefact | None, worker: Worker, rows: GraphRows, host: Host
    ) -> None:
        config = fit.config
        self._host = host
        self._fit, self._store, self._worker = fit, store, worker
        self._options = config.train
        if config.needs_ppr and ppr is None:
            raise InputError("this run needs a PPR artefact; compute one with: optimag ppr STORE")
        tasks = named(config.task)
        self._kinds = check_encoders(store, config.model.encoders)
        self._bad_pictures: list[BadPictures] = []
        if self._kinds:
            rows = RawRows(rows, store, config.model.encoders)
            self._bad_pictures += rows.bad_pictures.values()
        self._widths = {name: modality.width for name, modality in rows.modalities.items()}
        self._tasks = {
            name: make_task(options, store, seed=fit.seed, ppr=ppr, modalities=list(self._widths))
            for name, options in tasks.items()
        }
        for task in self._tasks.values():
            self._bad_pictures += task.bad_pictures
        self._rows = HidingRows.around(rows, [task.hidden for task in self._tasks.values()])
        evaluated = {name: HidingRows.around(rows, [t.hidden_in_evaluation]) for name, t in self._tasks.items()}
        torch.manual_seed(fit.seed)
        columns = {name: store.columns(name) for name in store.modalities if name not in self._kinds}
        self._model = MultimodalModel(self._widths, len(config.sampling.fanouts), config.model, self._kinds, columns)
        heads = {name: task.head(self._model) for name, task in self._tasks.items()}
        regulariser = UFGWRegulariser(**config.regulariser.model_dump()) if config.regularised else None
        self._prior = ppr if config.regularised else None
        weights = {name: options.weight for name, options in tasks.items()}
        self._step_loss = StepLoss(self._model, heads, weights, regulariser, worker.world_size).to(worker.device)
        self._heads = dict(zip(heads, self._step_loss.heads, strict=True))
        self._parallel: torch.nn.Module = self._step_loss
        if worker.world_size > 1:
            ids = [worker.device] if worker.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self._step_loss, device_ids=ids)
        groups = parameter_groups(self._step_loss, self._options.lr)
        self._optimiser = torch.optim.AdamW(groups, lr=self._options.lr, weight_decay=self._options.weight_decay)
        sampling, messages = config.sampling, self._model.passes_messages
        self._loader = self._make_loader(self._rows, sampling, messages=messages)
        self._evaluation_loaders = {
            name: self._make_loader(rows, sampling, messages=messages) for name, rows in evaluated.items()
        }
        self._sources = [
            (self._make_batcher(task.train, config.sampling), task.examples) for task in self._tasks.values()
        ]
        self._decisive = decisive_of(config.task)
        self.epoch = 0
        self.stopped = False
        self._totals = EpochTotals()
        self._saved_at = time.monotonic()
        self._best: dict[str, Any] = {"metrics": None, "epoch": -1, "weights": None}
        self._evaluations_since_best = 0
        self._advice: list[str] = []
        self._losses = {"first": 0.0, "largest": 0.0, "epoch": 0}
        remedy = f"training has diverged; lower train.lr (now {self._options.lr:g}) and train under another name"
        figures = {f"embedding/{name}": f"the embeddings of modality {name!r} are" for name in self._widths}
        figures |= {f"task_loss/{name}": f"the loss of task {name!r} is" for name in tasks if len(tasks) > 1}
        figures |= {"task_loss": "the task's loss is", "alignment": "the regulariser's value is"}
        module, world_size = self._step_loss, worker.world_size
        self._soundness = Soundness(figures, module, worker.device, world_size, remedy)

    def _make_loader(self, rows: GraphRows, sampling: SamplingOptions, *, messages: bool) -> GroupLoader:
        return GroupLoader(
            rows,
            self._prior,
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
            self._prior,
            sampling,
            seed=self._fit.seed,
            fill=self._prior is not None,
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
                    metrics = self._evaluate("val", "evaluate")
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
        batches = self._loader.epoch(self._sources, self.epoch, first_step=totals.steps)
        with contextlib.closing(batches):
            for cpu_batch in self._beating("load", totals.timed(batches), totals.steps):
                self._host.beat("step", self.epoch, cpu_batch.step)
                batch = cpu_batch.to(device)
                # Dropout depends on the position alone, so a resumed fit draws what an unbroken one would have drawn.
                torch.manual_seed(_mix(self._fit.seed, self.epoch, batch.step, self._worker.rank))
                self._optimiser.zero_grad(set_to_none=True)
                loss, figures = self._parallel(batch)
                loss.backward()
                self._soundness.note(batch.step, figures)
                figures = {name: figure for name, figure in figures.items() if not name.startswith("embedding/")}
                if self.epoch == batch.step == 0:
                    figures["first_loss"] = figures["task_loss"] + figures["alignment"]
                self._optimiser.step()
                totals.add(batch, figures)
                if totals.steps % _LOOK_EVERY == 0:
                    self._soundness.check(self.epoch, batch.step)
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
        # Waits for the device, as no step does.
        self._soundness.check(self.epoch, self._totals.steps - 1)
        sums, seconds = self._totals.over_ranks(self._totals_of_ranks())
        steps, groups = self._totals.steps, self._totals.groups
        record = {
            "epoch": self.epoch,
            "loss": (sums["task_loss"] + sums["alignment"]) / steps,
            "task_loss": sums["task_loss"] / steps,
            "steps": steps,
            "seconds": seconds["seconds"],
            "wait_s": seconds["wait_s"],
            "anchors_per_s": self._totals.items / seconds["seconds"],
        }
        record |= {name: value / steps for name, value in sums.items() if name.startswith("task_loss/")}
        if self._step_loss.regulariser is not None:
            record |= {"alignment": sums["alignment"] / steps, "kept_ppr": sums["kept_ppr"] / steps}
            record |= {"ufgw_s": seconds["ufgw_s"], "seeds_per_s": sums["seeds"] / seconds["seconds"]}
            record |= {
                f"kept_mass/{m}": sums[f"kept/{m}"] / sums[f"nodes/{m}"] for m in self._widths if sums[f"nodes/{m}"]
            }
            signs = {sign: sums[f"sign/{sign}"] / groups for sign in REMEDIES if f"sign/{sign}" in sums}
            record |= {f"transport/{sign}": share for sign, share in signs.items()}
            self._advice = [f"transport: {REMEDIES[sign]}" for sign, share in signs.items() if share > _WORTH_TELLING]
        if self.epoch == 0:
            self._losses["first"] = sums["first_loss"]
        if record["loss"] > self._losses["largest"]:
            self._losses |= {"largest": record["loss"], "epoch": self.epoch}
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

    def _evaluate(self, part: Part, phase: str) -> dict[str, float]:
        """Every task's figures of a part; rank 0 also writes what was made for the test part."""
        self._step_loss.eval()
        watched = partial(self._beating, phase)
        tasks, loaders, device = self._tasks, self._evaluation_loaders, self._worker.device
        figures: dict[str, float] = {}
        try:
            evaluated = evaluate_part(part, tasks, self._model, self._heads, loaders, device, watched)
        except Diverged as error:
            raise Diverged(f"after epoch {self.epoch}: {error} (train.lr is {self._options.lr:g})") from error
        for name, (computed, evaluation) in evaluated.items():
            figures |= {qualified(name, figure): value for figure, value in computed.items()}
            if part == "test" and self._worker.rank == 0 and (outputs := evaluation.outputs()) is not None:
                path = self._fit.directory / (f"outputs-{name}.parquet" if name else "outputs.parquet")
                self._write_table(path, outputs)
        return figures

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        best, sign = self._best["metrics"], metric_of(self._decisive).sign
        if best is None or sign * metrics[self._decisive] > sign * best[self._decisive]:
            weights = {name: tensor.detach().clone() for name, tensor in self._step_loss.state_dict().items()}
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
        _check_made_from(path, state, self._fit, self._store)
        if not (state.get("weights") or {}).keys() >= self._step_loss.state_dict().keys():
            # What is finished can be converted; of half a fit the optimiser's state would not fit.
            raise InputError(
                f"{path}: made by an earlier version of optimag_dist, whose models read features in another way; train "
                f"under another name, or delete {self._fit.directory} to start over"
            )
        checkpoint.put(self._step_loss, state.get("weights"), f"{path}: its weights")
        try:
            self._optimiser.load_state_dict(state["optimiser"])
            self.epoch, self._best = state["epoch"], state["best"]
            self._evaluations_since_best = state["evaluations_since_best"]
            self._advice, self._losses = state["advice"], state["losses"]
            if state["totals"] is not None:
                self._totals = EpochTotals.restored(state["totals"], self._worker.rank, self._worker.world_size)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: is not whole ({error!r}); delete {self._fit.directory} to start over") from error

    def _save(self) -> None:
        path = self._fit.directory / "checkpoint.pt"
        self._host.beat("save", self.epoch, self._totals.steps)
        self._soundness.check(self.epoch, self._totals.steps - 1)
        totals = self._totals.state(self._totals_of_ranks()) if self._totals.steps else None
        if self._worker.rank == 0:
            state = {
                **_made_from(self._fit, self._store),
                "weights": self._step_loss.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "epoch": self.epoch,
                "totals": totals,
                "best": self._best,
                "evaluations_since_best": self._evaluations_since_best,
                "advice": self._advice,
                "losses": self._losses,
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
            self._keep_if_best(self._evaluate("val", "evaluate"))
        self._step_loss.load_state_dict(self._best["weights"])
        test = self._evaluate("test", "test")
        kept_mass = self._kept_mass_of_all_nodes()
        advice = [*self._advice, *self._told_explosion(), *self._told_bad_pictures()]
        advice += notes_of(self._tasks)
        if self._worker.rank == 0:
            model = {
                "model": self._model.state_dict(),
                "heads": {name: head.state_dict() for name, head in self._heads.items()},
                "config": self._fit.config.model_dump(mode="json"),
                "widths": self._widths,
                "kinds": self._kinds,
                "classes": list(self._store.classes),
                "store": self._store.content_hash,
                "seed": self._fit.seed,
            }
            path = self._fit.directory / "model.pt"
            checkpoint.save(path, model)
            self._host.saved(path)
            if kept_mass is not None:
                ids = self._store.ids(np.arange(self._store.num_nodes))
                self._write_table(self._fit.directory / "kept_mass.parquet", pa.table({"id": ids, **kept_mass}))
        return {
            "variant": self._fit.variant,
            "seed": self._fit.seed,
            "epochs": self.epoch,
            "best_epoch": self._best["epoch"],
            "decisive": self._decisive,
            **{f"val/{name}": value for name, value in self._best["metrics"].items()},
            **{f"test/{name}": value for name, value in test.items()},
            "advice": "\n".join(advice),
        }

    def _told_explosion(self) -> list[str]:
        """A sentence where the loss has grown beyond all use, though it is still a number."""
        first, largest, epoch = (self._losses[name] for name in ("first", "largest", "epoch"))
        if largest <= _EXPLODED * first:
            return []
        return [
            f"training: the loss was {first:.3g} in the first step and {largest:.3g} in epoch {epoch + 1}: it has "
            f"diverged, though all is finite still; lower train.lr (now {self._options.lr:g})"
        ]

    def _told_bad_pictures(self) -> list[str]:
        """A sentence for each attribute that has some, over all ranks."""
        rank = self._worker.rank
        of_ranks = gather_dict({rank: [(bad.attribute, bad.nodes) for bad in self._bad_pictures]})
        nodes: dict[str, set[int]] = {}
        for attribute, met in itertools.chain.from_iterable(of_ranks.values()):
            nodes.setdefault(attribute, set()).update(met)
        return [told_bad_pictures(self._store, attribute, met) for attribute, met in nodes.items() if met]

    @torch.no_grad()
    def _kept_mass_of_all_nodes(self) -> dict[str, np.ndarray] | None:
        """Modality → (n,) float32 kept mass in the group that a node is an anchor of; NaN where it is absent."""
        regulariser = self._step_loss.regulariser
        if regulariser is None or self._options.kept_mass == "none":
            return None
        self._step_loss.eval()
        names = list(self._widths)
        kept = torch.zeros(len(names), self._store.num_nodes, device=self._worker.device)
        judging = self._fit.config.sampling.for_judging
        batcher = self._make_batcher(np.arange(self._store.num_nodes), judging)
        for batch in self._beating(
            "export", self._make_loader(self._rows, judging, messages=False).epoch([(batcher, nodes_alone)], epoch=0)
        ):
            for group in batch.to(self._worker.device).groups:
                anchors = group.node_ids[group.seed_rows[: group.num_anchors]]
                _, kept_mass = align(regulariser, self._model.encode(group.features), group)
                for m, name in enumerate(names):
                    kept[m, anchors] = kept_mass[name][: group.num_anchors]
        if self._worker.world_size > 1:
            # Every node is an anchor on one rank and 0 on the others.
            dist.all_reduce(kept)
        return dict(zip(names, kept.cpu().numpy(), strict=True))

    def _write_table(self, path: Path, table: pa.Table) -> None:
        with atomic(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)
        self._host.saved(path)

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
