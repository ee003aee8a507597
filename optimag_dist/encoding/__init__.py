"""Features of raw texts and pictures by a pretrained network, distributed, written back into a store."""
