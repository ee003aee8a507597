"""Small real graphs that ship with the package, and synthetic ones with planted conflicts."""

from optimag_dist.datasets.planted import PlantedOptions, read_truth, write_planted
from optimag_dist.datasets.registry import copy_dataset, dataset_schema, list_datasets

__all__ = ["PlantedOptions", "copy_dataset", "dataset_schema", "list_datasets", "read_truth", "write_planted"]
