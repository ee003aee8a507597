"""What is asked of a run before anything is started or written."""

from pathlib import Path
from typing import NoReturn

from optimag_dist.files import LOCK
from optimag_dist.models.backbones import check_backbone
from optimag_dist.sampling import SeedBatcher, check_encoders
from optimag_dist.sampling.dgl_neighbours import load_dgl
from optimag_dist.storage import AnyPath
from optimag_dist.store import GraphStore
from optimag_dist.tasks import make_task, named, notes_of
from optimag_dist.train.options import VariantConfig
from optimag_dist.train.regularisers import make_regulariser
from optimag_dist.types import InputError, RunError


def check_input(store: GraphStore, config: VariantConfig, seed: int) -> list[str]:
    """Check what a fit's workers check, and return sentences about the tasks' splits that whoever starts the run should
    know. ``InputError``: store, tasks and sampling do not fit together, or what they need is not installed."""
    model, sampling = config.model, config.sampling
    if sampling.sampler == "dgl":
        load_dgl()
    check_encoders(store, model.encoders)
    if model.encoders and config.workers.placement == "sharded":
        raise InputError("model.encoders reads texts and pictures of the whole store: use workers.placement=replicated")
    modalities = list(dict.fromkeys([*store.modalities, *model.encoders]))
    tasks, smallest = {}, []
    for name, options in named(config.task).items():
        try:
            tasks[name] = task = make_task(options, store, seed=seed, modalities=modalities)
            batcher = SeedBatcher(task.train, store.num_nodes, None, sampling, seed=seed, fill=False)
        except InputError as error:
            raise InputError(f"task {name}: {error}" if name else str(error)) from error
        # An edge has two ends.
        smallest.append(batcher.smallest_group * task.train.ndim)
    check_backbone(
        model.backbone,
        model.backbone_settings,
        modalities=len(modalities),
        width=model.embedding,
        hidden=model.hidden,
        num_layers=len(sampling.fanouts),
        smallest_group=min(smallest),
    )
    if config.regularised:
        make_regulariser(config.regulariser)
    return notes_of(tasks)


def refuse_second(place: AnyPath, holder: str) -> NoReturn:
    """For :func:`~optimag_dist.locks.sole_user`: two drivers would mix their models."""
    raise RunError(f"{place}: {holder}, is at work here; wait until it has ended, or choose another name=...")


def check_free(directory: Path, shown: AnyPath) -> None:
    """``InputError`` if there is a run or a sweep in ``directory``, which the user calls ``shown``."""
    if directory.exists() and any(file.name != LOCK for file in directory.iterdir()):
        raise InputError(f"{shown}: there is a run here already; go on with it by --resume, or choose another name=...")
