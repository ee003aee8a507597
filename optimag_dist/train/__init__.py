"""Fitting models: ``fit`` knows torch.distributed alone, ``launch`` at the rim knows Ray.

Nothing is imported here: who reads a run's options should not wait for Ray.
"""
