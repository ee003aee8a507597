"""Fitting models: ``fit`` knows torch.distributed alone, ``launch`` and ``worker_group`` know Ray.

Nothing is imported here: who reads a run's options should not wait for Ray.
"""
