"""One optimiser step's loss on one rank.

    loss = Σ over tasks of weight · mean over all ranks' items of the task's loss
         + λ · mean over all ranks' groups of the regulariser's value

DDP averages gradients over ranks, so each rank's share is scaled by the number of ranks: the gradient of a step is
that of its global batch, whatever the number of workers.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from optimag_dist.models import MultimodalModel
from optimag_dist.tasks import TaskHead
from optimag_dist.train.metrics import StepMetrics, Stopwatch
from optimag_dist.train.regularisers import kept_mass_of, signs_of
from optimag_dist.train.share import GradientShare
from optimag_dist.types import GroupBatch, StepBatch


class StepLoss(nn.Module):
    """The module that DDP wraps, so that a step is one forward and one backward however many groups it has. ``heads``
    and ``weights`` of losses are in the order of the batches' tasks. λ is the ``regulariser``'s own matter where there
    is no ``share``, which goes by the gradients otherwise."""

    def __init__(
        self,
        model: MultimodalModel,
        heads: Mapping[str, TaskHead],
        weights: Mapping[str, float],
        regulariser: nn.Module | None,
        world_size: int,
        share: GradientShare | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # A list: names are the user's, and may be what torch's dictionaries of modules call their methods.
        self.heads = nn.ModuleList(heads.values())
        self.regulariser = regulariser
        self.share = share
        self._tasks = list(heads)
        self._weights = list(weights.values())
        self._world_size = world_size
        self.ufgw_time = Stopwatch()

    def forward(self, batch: StepBatch) -> tuple[Tensor, StepMetrics, dict[str, Tensor]]:
        """This rank's scaled loss, its share of the step's metrics, and modality → the largest number in its embeddings
        here, absent nodes aside."""
        device = batch.groups[0].seed_rows.device
        losses = [torch.zeros((), device=device) for _ in self._tasks]
        aligned, largest = StepMetrics(alignment=torch.zeros((), device=device)), dict[str, Tensor]()
        weight = None if self.share is None else self.share.begin(batch.epoch, device)
        for group in batch.groups:
            embeddings = self.model.encode(group.features)
            for m, z in embeddings.items():
                here = z.detach().abs().masked_fill(~group.present[m][:, None], 0).amax()
                largest[m] = torch.maximum(largest.get(m, here), here)
            apart = embeddings
            if self.share is not None:
                copies = {m: self.share.split(z) for m, z in embeddings.items()}
                embeddings, apart = ({m: each[i] for m, each in copies.items()} for i in range(2))
            loss = self.heads[group.task](self.model, embeddings, group)
            losses[group.task] = losses[group.task] + loss / batch.num_items[group.task]
            if self.regulariser is not None:
                aligned = aligned + self._align(self.regulariser, apart, group, batch.num_groups)
        task_loss = torch.stack([w * loss for w, loss in zip(self._weights, losses, strict=True)]).sum()
        of_tasks = {name: loss.detach() for name, loss in zip(self._tasks, losses, strict=True)}
        alignment = torch.as_tensor(aligned.alignment)
        metrics = replace(
            aligned,
            task_loss=task_loss.detach(),
            alignment=alignment.detach() if weight is None else weight * alignment.detach(),
            task_losses=of_tasks if len(losses) > 1 else {},
        )
        return (task_loss + alignment) * self._world_size, metrics, largest

    def _align(
        self, regulariser: nn.Module, embeddings: Mapping[str, Tensor], group: GroupBatch, num_groups: int
    ) -> StepMetrics:
        """A group's share of the step's metrics of the regulariser; the value has its gradient still."""
        with self.ufgw_time(group.seed_rows.device):
            value, kept_mass = align(regulariser, embeddings, group)
        return StepMetrics(
            alignment=value / num_groups,
            kept_mass={m: kept.nansum() for m, kept in kept_mass.items()},
            nodes={m: kept.isfinite().sum() for m, kept in kept_mass.items()},
            signs={sign: flags.float().mean() for sign, flags in signs_of(regulariser).items()},
        )


def align(
    regulariser: nn.Module, embeddings: Mapping[str, Tensor], group: GroupBatch
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """:func:`align_embeddings` of a group's seeds, given the embeddings of all its nodes."""
    seeds = {m: z[group.seed_rows] for m, z in embeddings.items()}
    present = {m: mask[group.seed_rows] for m, mask in group.present.items()}
    return align_embeddings(regulariser, seeds, present, group.proximity)


def align_embeddings(
    regulariser: nn.Module,
    embeddings: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    proximity: Tensor | None,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The regulariser's value over the seeds of a group, and their kept mass, as of :func:`kept_mass_of`, given
    modality → (N, d) embeddings and (N,) bool, and (N, N) proximity."""
    return regulariser(embeddings, proximity, present), kept_mass_of(regulariser)
