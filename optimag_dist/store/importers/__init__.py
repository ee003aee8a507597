"""Graphs in other people's layouts, one file each; :func:`open_source` finds out which one it is."""

from optimag_dist.store.importers.detect import open_source
from optimag_dist.store.importers.options import ImportOptions

__all__ = ["ImportOptions", "open_source"]
