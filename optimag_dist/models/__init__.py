"""Encoders per modality, their fusion, and the backbones that pass messages."""

from optimag_dist.models.model import ModelOptions, MultimodalModel, withhold
