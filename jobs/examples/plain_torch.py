"""OptiMAG in a plain torch loop: no Ray, no store, no files.

A made-up graph of 5 classes whose nodes carry a text and an image vector. One node in five has the picture of another
class: watch the kept mass tell them apart.

    python jobs/examples/plain_torch.py
"""

import numpy as np
import torch
from torch import nn

from optimag_dist import OptiMAG
from optimag_dist.ppr import ppr_topk

NODES, CLASSES, DEGREE, EPOCHS = 300, 5, 8, 30
rng = np.random.default_rng(0)
torch.manual_seed(0)

# The graph: each node draws neighbours, mostly of its own class.
labels = rng.integers(CLASSES, size=NODES)
sources = np.repeat(np.arange(NODES), DEGREE)
same = np.array([rng.choice(np.flatnonzero(labels == labels[u])) for u in sources])
targets = np.where(rng.random(len(sources)) < 0.85, same, rng.integers(NODES, size=len(sources)))
indptr = np.arange(NODES + 1) * DEGREE

# The features: class centres plus noise; 20 % of the pictures belong to another class.
conflict = rng.random(NODES) < 0.2
shown = np.where(conflict, (labels + rng.integers(1, CLASSES, size=NODES)) % CLASSES, labels)
text = torch.as_tensor(rng.normal(size=(CLASSES, 24))[labels] + 2.5 * rng.normal(size=(NODES, 24))).float()
image = torch.as_tensor(rng.normal(size=(CLASSES, 32))[shown] + 1.0 * rng.normal(size=(NODES, 32))).float()

# Personalised PageRank, scattered into a dense matrix since the graph is small.
ppr_indptr, ppr_indices, ppr_values = ppr_topk(indptr, targets, np.arange(NODES), k=64)
ppr = np.zeros((NODES, NODES), dtype=np.float32)
ppr[np.repeat(np.arange(NODES), np.diff(ppr_indptr)), ppr_indices] = ppr_values


def encoder(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 32))


encoders = nn.ModuleDict({"text": encoder(24), "image": encoder(32)})
classifier = nn.Linear(64, CLASSES)
optimag = OptiMAG(torch.as_tensor(ppr))
optimiser = torch.optim.Adam([*encoders.parameters(), *classifier.parameters()], lr=5e-3)

y = torch.as_tensor(labels)
node_ids = torch.arange(NODES)
train = torch.as_tensor(rng.random(NODES) < 0.1)

for epoch in range(EPOCHS):
    encoders.train()
    embeddings = {"text": encoders["text"](text), "image": encoders["image"](image)}
    logits = classifier(torch.cat(list(embeddings.values()), dim=1))
    loss = nn.functional.cross_entropy(logits[train], y[train]) + optimag(embeddings, node_ids)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if epoch % 10 == 9:
        encoders.eval()
        with torch.no_grad():
            logits = classifier(torch.cat([encoders["text"](text), encoders["image"](image)], dim=1))
        accuracy = (logits.argmax(1) == y)[~train].float().mean()
        print(f"epoch {epoch + 1:3d}  loss {loss.item():.3f}  test accuracy {accuracy:.3f}")

found = optimag.diagnostics()
for modality, kept in found.kept_mass.items():
    wrong, right = kept[torch.as_tensor(conflict)].mean(), kept[torch.as_tensor(~conflict)].mean()
    print(f"kept mass of {modality:5s}: {right:.3f} where the picture fits, {wrong:.3f} where it is of another class")
print(f"solver: {found.status}")
