"""A run that takes seconds, for tests of what happens around it."""

from pathlib import Path
from typing import Any

import yaml

from optimag_dist.options import merge
from optimag_dist.store import GraphStore


def write_recipe(folder: Path, store: GraphStore, changes: dict[str, Any]) -> Path:
    """One fit by two workers with a CPU each, into ``folder / "runs"``; returns the configuration's file."""
    config = {
        "name": "openmoji",
        "store": str(store.path),
        "out": str(folder / "runs"),
        "ppr": {"eps": 1e-3, "k": 16},
        "task": {"split": {"train": 0.05, "val": 0.1}},
        "sampling": {"groups": 2, "targets": 32, "group_size": 64, "fanouts": [5, 5]},
        "model": {"hidden": 32, "embedding": 16},
        "workers": {"device": "cpu"},
    }
    path = folder / "openmoji.yaml"
    path.write_text(yaml.safe_dump(merge(config, changes)))
    return path
