"""Small real graphs that ship with the package."""

from optimag_dist.datasets.registry import DatasetInfo, copy_dataset, dataset_schema, list_datasets

__all__ = ["DatasetInfo", "copy_dataset", "dataset_schema", "list_datasets"]
