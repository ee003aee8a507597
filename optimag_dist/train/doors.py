"""What is asked of a run before anything is started or written."""

from pathlib import Path

from optimag_dist.sampling import SeedBatcher
from optimag_dist.storage import AnyPath
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassification
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError


def check_input(store: GraphStore, config: VariantConfig, seed: int) -> NodeClassification:
    """Go through the doors that a fit's workers go through.

    Returns:
        The fit's task.

    Raises:
        InputError: store, task and sampling do not fit together.
    """
    task = NodeClassification(store, config.task, seed=seed)
    SeedBatcher(task.train, store.num_nodes, None, config.sampling, seed=seed, fill=False)
    return task


def check_free(directory: Path, shown: AnyPath) -> None:
    """Refuse to begin a run or a sweep where there is one.

    Args:
        directory: of the new one.
        shown: what the user calls it.

    Raises:
        InputError: something lies there.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{shown}: there is a run here already; go on with it by --resume, or choose another name=...")
