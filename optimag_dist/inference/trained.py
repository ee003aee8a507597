"""A fit's ``model.pt``, with what is needed to use it on a store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.models import MultimodalModel
from optimag_dist.options import merge, validate_options
from optimag_dist.sampling import GraphDataSource, LocalSource, RawRows, check_encoders
from optimag_dist.storage import AnyPath, file_sizes, is_file, on_this_host
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassificationOptions, named
from optimag_dist.tasks.node_classification import ClassifierHead
from optimag_dist.tasks.task import Task, TaskHead, TaskOptions
from optimag_dist.train import checkpoint
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError

MODEL = "model.pt"
_AGAIN = "copy it again from where it is whole, or train again"


@dataclass(frozen=True)
class TrainedModel:
    """A fit's model, on the asked device and in evaluation mode: from ``model.pt`` at ``location``, on this host at
    ``path``. ``widths`` are by modality, ``heads`` (weights) by task; ``seed`` is None where the file does not say."""

    location: AnyPath
    path: Path
    seed: int | None
    config: VariantConfig
    widths: dict[str, int]
    classes: tuple[str, ...]
    store_hash: str
    heads: dict[str, Any]
    model: MultimodalModel

    @classmethod
    def open(cls, path: AnyPath, device: torch.device) -> "TrainedModel":
        """Read ``model.pt``, or that of a fit's directory; ``InputError`` where there is none, or it is damaged."""
        location = path if is_file(path) else path / MODEL
        if not is_file(location):
            raise _no_model(path)
        file = on_this_host(location)
        try:
            state = checkpoint.load(file, device, _AGAIN)
        except InputError:
            if isinstance(location, Path):
                raise
            # This host's copy may be what is damaged.
            file.unlink(missing_ok=True)
            file = on_this_host(location)
            state = checkpoint.load(file, device, _AGAIN)
        _check_state(file, state)
        config = validate_options(VariantConfig, state["config"], source=f"{file}, config")
        return cls(
            location=location.absolute(),
            path=file.absolute(),
            seed=state.get("seed"),
            config=config,
            widths=dict(state["widths"]),
            classes=tuple(state["classes"]),
            store_hash=state["store"],
            heads=state["heads"],
            model=_build(file, state, config).to(device).eval(),
        )

    def fanouts(self, asked: tuple[int, ...] | None) -> tuple[int, ...]:
        """Neighbours drawn per layer: ``asked``, one for each, or those of the fit's evaluation."""
        fanouts, num_layers = asked or self.config.sampling.fanouts_at_evaluation, len(self.config.sampling.fanouts)
        if len(fanouts) != num_layers:
            raise InputError(
                f"fanouts={list(fanouts)}: {self.path} has {num_layers} message-passing layers, each needs one fan-out"
            )
        return fanouts

    def forward(
        self, store: GraphStore, fanouts: tuple[int, ...], seed: int, on_chunk: Callable[[], object] = lambda: None
    ) -> LayerwiseForward:
        """The model over ``store``, with draws of ``fanouts`` neighbours by ``seed``."""
        rows: GraphDataSource = LocalSource(store)
        if encoders := self.config.model.encoders:
            rows = RawRows(rows, store, encoders)
        device = next(self.model.parameters()).device
        return LayerwiseForward(self.model, rows, store.num_nodes, fanouts, seed=seed, device=device, on_chunk=on_chunk)

    def tasks(self, changes: Mapping[str, Any]) -> dict[str, TaskOptions]:
        """Name → options of its tasks, with the ``task`` section changed; ``InputError`` where it makes other tasks."""
        data = merge(self.config.model_dump(mode="json"), {"task": dict(changes)})
        known = named(self.config.task)
        changed = named(validate_options(VariantConfig, data, source=f"{self.location}, changed").task)
        if {name: type(task) for name, task in changed.items()} != {name: type(task) for name, task in known.items()}:
            raise InputError("task: a trained model's tasks and their kinds stay as they are; train another for others")
        return changed

    @cached_property
    def classifier(self) -> ClassifierHead:
        """What classifies a node by its state; on the model's device, in evaluation mode; likewise."""
        head = ClassifierHead(self.model, len(self.classes))
        checkpoint.put(head, self.heads.get(self.classification()), f"{self.path}: the weights of its classifier")
        return head.to(next(self.model.parameters()).device).eval()

    def head(self, name: str, task: Task[Any]) -> TaskHead:
        """The head of ``task``, called ``name``; likewise. ``InputError`` where it asks for other weights."""
        head = task.head(self.model)
        try:
            head.load_state_dict(self.heads[name])
        except (RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.location}: its weights do not fit the task as it is asked for; change only keys that make no "
                f"other weights: {error}"
            ) from error
        return head.to(next(self.model.parameters()).device).eval()

    def classification(self) -> str:
        """The name of the task that classifies nodes; ``InputError`` where it was trained on other tasks only."""
        tasks = named(self.config.task)
        for name, options in tasks.items():
            if isinstance(options, NodeClassificationOptions):
                return name
        kinds = ", ".join(options.kind for options in tasks.values())
        raise InputError(
            f"{self.location}: was trained on {kinds} and has no classes to predict; optimag evaluate tells how good "
            f"it is, and optimag embed writes its nodes' states"
        )

    def check_split(self, store: GraphStore, split: Any, *, remedy: str) -> None:
        """Raise ``InputError``, with what to do, if a task's ``split`` is random and what it drew is not known."""
        if split == "stored" or (self.seed is not None and store.content_hash == self.store_hash):
            return
        why = "does not name its seed" if self.seed is None else "was trained on another store"
        raise InputError(
            f"{self.location}: was trained on a random split and {why}, so its held-out nodes are not known; {remedy}"
        )

    def check_store(self, store: GraphStore, *, allow_other: bool) -> None:
        """Raise ``InputError`` unless ``store`` is the one trained on, or another is allowed and its features fit."""
        if store.content_hash != self.store_hash and not allow_other:
            raise InputError(
                f"{store.path}: has content {store.content_hash[:16]}, but {self.path} was trained on "
                f"{self.store_hash[:16]}; if that is meant, add allow_other_store=true"
            )
        check_encoders(store, self.config.model.encoders)
        found = {name: modality.width for name, modality in store.modalities.items()}
        for name, width in self.widths.items():
            if name not in self.config.model.encoders and found.get(name) != width:
                has = f"width {found[name]}" if name in found else f"only {', '.join(found)}"
                raise InputError(
                    f"{store.path}: {self.path} needs modality {name!r} of width {width}, and the store has {has}; "
                    f"ingest the same features that it was trained on"
                )


def _check_state(file: Path, state: dict[str, Any]) -> None:
    if not state.keys() >= {"model", "heads", "config", "widths", "classes", "store"}:
        raise InputError(f"{file}: not a trained model (checkpoint.pt holds an unfinished fit); give its model.pt")
    sound = (
        all(isinstance(state[name], dict) for name in ("model", "heads", "config", "widths"))
        and all(isinstance(head, dict) for head in state["heads"].values())
        and all(isinstance(name, str) and type(width) is int and width >= 0 for name, width in state["widths"].items())
        and isinstance(state.get("kinds"), dict | None)
        and isinstance(state["classes"], list | tuple)
        and all(isinstance(name, str) for name in (*state["classes"], state["store"]))
        and isinstance(state.get("seed"), int | None)
    )
    if not sound:
        raise InputError(f"{file}: not a trained model of this program, or damaged; {_AGAIN}")


def _no_model(path: AnyPath) -> InputError:
    needed = "give the model.pt of a finished fit, or its directory: RUN/VARIANT/seed-N"
    there = file_sizes(path, below=True)
    if fits := sorted(name.removesuffix(f"/{MODEL}") for name in there if fnmatch(name, f"*/seed-*/{MODEL}")):
        return InputError(f"{path}: is a whole run; give one of its fits: {', '.join(str(path / fit) for fit in fits)}")
    is_folder = there or (isinstance(path, Path) and path.is_dir())
    what = "no model.pt in this directory (an unfinished fit has none)" if is_folder else "no such file"
    return InputError(f"{path}: {what}; {needed}")


def _build(file: Path, state: dict[str, Any], config: VariantConfig) -> MultimodalModel:
    try:
        model = MultimodalModel(state["widths"], len(config.sampling.fanouts), config.model, state.get("kinds"))
    except InputError:
        raise
    # Somebody else's file may say anything, and torch's modules answer with anything.
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: no model can be made from its own configuration: {reason}; {_AGAIN}") from error
    checkpoint.put(model, state["model"], f"{file}: its weights")
    # What features are scaled by may be infinite, and is not trained.
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    # What is no tensor is refused where the head is built.
    weights += [w for head in state["heads"].values() for w in head.values() if isinstance(w, torch.Tensor)]
    if bad := sum(int((~w.isfinite()).sum()) for w in weights):
        raise InputError(
            f"{file}: {bad:,} of its weights are not finite, as its training had diverged; train again with a lower "
            f"optim.lr (it was {config.optim.lr:g})"
        )
    return model
