"""Experiments: what is compared, on which graphs, over which seeds, and the report of it."""
