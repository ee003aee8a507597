"""One optimiser step's loss on one rank.

    loss = Σ over tasks of weight · mean over all ranks' items of the task's loss
         + mean over all ranks' groups of the regulariser's value

DDP averages gradients over ranks, so each rank's share is scaled by the number of ranks: the gradient of a step is
that of its global batch, whatever the number of workers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from optimag_dist.models import MultimodalModel
from optimag_dist.tasks import TaskHead
from optimag_dist.train.stopwatch import Stopwatch
from optimag_dist.types import GroupBatch, StepBatch
from optimag_dist.ufgw import UFGWRegulariser


class StepLoss(nn.Module):
    """The module that DDP wraps, so that a step is one forward and one backward however many groups it has.

    Args:
        heads: task → head, in the order of the batches' tasks.
        weights: of the tasks' losses.
    """

    def __init__(
        self,
        model: MultimodalModel,
        heads: Mapping[str, TaskHead],
        weights: Mapping[str, float],
        regulariser: UFGWRegulariser | None,
        world_size: int,
    ) -> None:
        super().__init__()
        self.model = model
        # A list: names are the user's, and may be what torch's dictionaries of modules call their methods.
        self.heads = nn.ModuleList(heads.values())
        self.regulariser = regulariser
        self._tasks = list(heads)
        self._weights = list(weights.values())
        self._world_size = world_size
        self.ufgw_time = Stopwatch()

    def forward(self, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's scaled loss, and its detached shares of the step's figures, which add up over ranks.

        Figures: ``task_loss`` and ``alignment`` (means over the step); with several tasks ``task_loss/TASK``, before
        weights; per modality ``kept/m``, the kept mass summed over the nodes of the groups that have it, and
        ``nodes/m``, how many these are; per sign of a useless plan ``sign/…``, in what share of a group's modalities it
        was seen, summed over groups; and of this rank alone ``embedding/m``, the largest number in modality m's.
        """
        device = batch.groups[0].seed_rows.device
        alignment = torch.zeros((), device=device)
        losses = [torch.zeros((), device=device) for _ in self._tasks]
        figures: dict[str, Tensor] = {}
        for group in batch.groups:
            embeddings = self.model.encode(group.features)
            for m, z in embeddings.items():
                largest = z.detach().abs().masked_fill(~group.present[m][:, None], 0).amax()
                figures[f"embedding/{m}"] = torch.maximum(figures.get(f"embedding/{m}", largest), largest)
            loss = self.heads[group.task](self.model, embeddings, group)
            losses[group.task] = losses[group.task] + loss / batch.num_items[group.task]
            if self.regulariser is not None:
                with self.ufgw_time(device):
                    value, kept_mass = align(self.regulariser, embeddings, group)
                for sign, flags in self.regulariser.diagnostics().status.signs.items():
                    figures[f"sign/{sign}"] = figures.get(f"sign/{sign}", 0) + flags.float().mean()
                alignment = alignment + value / batch.num_groups
                for m, kept in kept_mass.items():
                    figures[f"kept/{m}"] = figures.get(f"kept/{m}", 0) + kept.nansum()
                    figures[f"nodes/{m}"] = figures.get(f"nodes/{m}", 0) + kept.isfinite().sum()
        task_loss = torch.stack([w * loss for w, loss in zip(self._weights, losses, strict=True)]).sum()
        figures |= {"task_loss": task_loss.detach(), "alignment": alignment.detach()}
        if len(losses) > 1:
            figures |= {f"task_loss/{name}": loss.detach() for name, loss in zip(self._tasks, losses, strict=True)}
        return (task_loss + alignment) * self._world_size, figures


def align(
    regulariser: UFGWRegulariser, embeddings: Mapping[str, Tensor], group: GroupBatch
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The regulariser over a group's seeds, given the embeddings of all its nodes.

    Returns:
        Its value, and modality → (N,) kept mass of the seeds, NaN where absent.
    """
    seeds = {m: z[group.seed_rows] for m, z in embeddings.items()}
    present = {m: mask[group.seed_rows] for m, mask in group.present.items()}
    value = regulariser(seeds, group.proximity, present)
    return value, regulariser.diagnostics().kept_mass
