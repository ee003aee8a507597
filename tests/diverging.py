"""A variant that diverges after some steps."""

from pathlib import Path

LOST = """
import torch
from torch import nn
from optimag_dist.types import Diverged

class Lost(nn.Module):
    passes_messages = False

    def __init__(self, modalities, width, hidden, num_layers, dropout, steps):
        super().__init__()
        self.linear = nn.Linear(modalities * width, hidden)
        self.left = steps

    def forward(self, x, blocks, degrees):
        if self.training:
            self.left -= 1
        if self.left < 0:
            raise Diverged("loss nan at step 2; lower optim.lr")
        return self.linear(x)
"""


def lost(folder: Path) -> dict:
    """Changes to a variant that make it diverge."""
    (folder / "lost.py").write_text(LOST)
    return {"model.backbone": f"{folder / 'lost.py'}:Lost", "model.backbone_settings": {"steps": 12}}
