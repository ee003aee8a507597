"""Embeddings and predictions of trained models for all nodes of a store.

Nothing is imported here: who reads the options should not wait for Ray.
"""
