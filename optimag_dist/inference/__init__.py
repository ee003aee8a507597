"""Embeddings, predictions and metrics of trained models. Nothing is imported here: options should not load Ray."""
