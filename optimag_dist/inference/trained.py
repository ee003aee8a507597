"""A fit's ``model.pt``, with what is needed to use it on a store."""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from optimag_dist.models import MultimodalModel
from optimag_dist.options import validate_options
from optimag_dist.sampling import GraphRows, RawRows, StoreRows, check_encoders
from optimag_dist.storage import AnyPath, files_below, is_file, on_this_host
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassificationOptions, named
from optimag_dist.tasks.node_classification import ClassifierHead
from optimag_dist.train import checkpoint
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError

MODEL = "model.pt"


@dataclass(frozen=True)
class TrainedModel:
    """Attributes:
    location: of ``model.pt``.
    path: of it on this host.
    seed: of the fit; None where the file does not say.
    config: what it was trained with.
    widths: modality → width of its features.
    classes: names of the head's outputs.
    store_hash: content hash of the store it was trained on.
    heads: task → weights of its head.
    model: on the asked device, in evaluation mode.
    """

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
        """Read ``model.pt``, or that of a fit's directory.

        Raises:
            InputError: there is none, or it is damaged or of another kind.
        """
        location = path if is_file(path) else path / MODEL
        if not is_file(location):
            raise _no_model(path)
        file = on_this_host(location)
        state = checkpoint.load(file, device)
        kind = isinstance(state, dict) and state.keys() >= {"model", "heads", "config", "widths", "classes", "store"}
        if not kind:
            raise InputError(f"{file}: not a trained model (checkpoint.pt holds an unfinished fit); give its model.pt")
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

    @property
    def eval_fanouts(self) -> tuple[int, ...]:
        return self.config.sampling.fanouts_at_evaluation

    def rows(self, store: GraphStore) -> GraphRows:
        """What the model reads of ``store``."""
        rows, encoders = StoreRows(store), self.config.model.encoders
        return RawRows(rows, store, encoders) if encoders else rows

    @property
    def classification(self) -> NodeClassificationOptions:
        """The options it was trained to classify nodes by.

        Raises:
            InputError: it was trained on other tasks only.
        """
        return self._classification[1]

    @cached_property
    def classifier(self) -> ClassifierHead:
        """What classifies a node by its state; on the model's device, in evaluation mode.

        Raises:
            InputError: it was trained on other tasks only.
        """
        head = ClassifierHead(self.model, len(self.classes))
        head.load_state_dict(self.heads[self._classification[0]])
        return head.to(next(self.model.parameters()).device).eval()

    @property
    def _classification(self) -> tuple[str, NodeClassificationOptions]:
        tasks = named(self.config.task)
        for name, options in tasks.items():
            if isinstance(options, NodeClassificationOptions):
                return name, options
        kinds = ", ".join(options.model_dump()["kind"] for options in tasks.values())
        raise InputError(
            f"{self.location}: was trained on {kinds} and has no classes to predict; its test figures are in the fit's "
            f"result.json, what it made in outputs.parquet, and optimag embed writes its nodes' states"
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

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


def _no_model(path: AnyPath) -> InputError:
    needed = "give the model.pt of a finished fit, or its directory: RUN/VARIANT/seed-N"
    there = files_below(path)
    if fits := sorted(name.removesuffix(f"/{MODEL}") for name in there if fnmatch(name, f"*/seed-*/{MODEL}")):
        return InputError(f"{path}: is a whole run; give one of its fits: {', '.join(str(path / fit) for fit in fits)}")
    is_folder = there or (isinstance(path, Path) and path.is_dir())
    what = "no model.pt in this directory (an unfinished fit has none)" if is_folder else "no such file"
    return InputError(f"{path}: {what}; {needed}")


def _build(file: Path, state: dict[str, Any], config: VariantConfig) -> MultimodalModel:
    model = MultimodalModel(state["widths"], len(config.sampling.fanouts), config.model, state.get("kinds"))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise InputError(f"{file}: its weights do not fit its own configuration; train again: {error}") from error
    return model
