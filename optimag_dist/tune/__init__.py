"""Sweeps: a search space, trials that are fits of several workers each, and what came of them.

Nothing is imported here: who reads a sweep's options should not wait for Ray.
"""
