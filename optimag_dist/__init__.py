"""optimag_dist: OptiMAG (arXiv 2601.22856) from one laptop to a Ray cluster.

The public names are imported on first use, so that ``import optimag_dist.ufgw`` needs torch and nothing else.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimag_dist.optimag import OptiMAG
    from optimag_dist.ufgw.options import LocalOptions, RobustOptions, UFGWOptions

# Before anybody imports dgl: unless told its backend, it prints, and writes a file into the home directory.
os.environ.setdefault("DGLBACKEND", "pytorch")

__version__ = "0.1.0"
__all__ = ["LocalOptions", "OptiMAG", "RobustOptions", "UFGWOptions", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "OptiMAG":
        return import_module("optimag_dist.optimag").OptiMAG
    if name in ("LocalOptions", "RobustOptions", "UFGWOptions"):
        return getattr(import_module("optimag_dist.ufgw.options"), name)
    raise AttributeError(f"module 'optimag_dist' has no attribute {name!r}")
