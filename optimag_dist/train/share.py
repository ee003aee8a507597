"""Holds the regulariser at a share of the encoders' gradient, so that one number serves every graph, task and width.

    λ = share · warm-up · strength · ‖∂task/∂Z‖ / ‖∂R/∂Z‖,   Z: what the encoders put out for a step, all modalities

The norms are those of the last steps' global batches, smoothed, so that λ is known before a step and is the same for
any number of workers. To measure them costs three sums over Z in backward, and no pass of its own. The first step has
λ = 0.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Steps over which norms are smoothed, about.
_STEPS = 20
# Of a step: ‖∂task/∂Z‖², ‖∂R/∂Z‖², and ⟨∂task/∂Z, ∂R/∂Z⟩. The first two are smoothed.
_TASK, _REGULARISER, _PRODUCT = range(3)


class GradientShare(nn.Module):
    """Use: :meth:`split` what the encoders put out, compute the task's loss of one copy and R of the other, go backward
    through their plain sum, and :meth:`settle`. It has no parameters; what it has measured is in its state.

    Args:
        share: ‖λ ∂R/∂Z‖ / ‖∂task/∂Z‖ that is aimed at.
        warm_up: epochs over which that rises from 0.
        strength: factor of it, 0 to 1.
    """

    def __init__(self, share: float, warm_up: int, strength: float = 1.0) -> None:
        super().__init__()
        self.share, self.warm_up, self.strength = share, warm_up, strength
        self.smoothed: Tensor
        self.register_buffer("smoothed", torch.zeros(2, dtype=torch.float64))
        # Of the epoch so far: Σ λ, Σ share, Σ cosine, steps in which task and regulariser pull apart, steps.
        self.epoch: Tensor
        self.register_buffer("epoch", torch.zeros(5, dtype=torch.float64))
        self._seen: Tensor | None = None
        self._weight: Tensor | None = None

    def begin(self, epoch: int, device: torch.device) -> Tensor:
        """λ of the step that begins, 0-dim float32 on ``device``."""
        norms = self.smoothed
        rising = min(1.0, epoch / self.warm_up) if self.warm_up else 1.0
        ratio = (norms[_TASK] / norms[_REGULARISER]).sqrt()
        weight = self.share * self.strength * rising * torch.where(norms[_REGULARISER] > 0, ratio, 0.0)
        self._seen = torch.zeros(3, dtype=torch.float64, device=device)
        self._weight = weight.to(device, torch.float32)
        return self._weight

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` for the task and ``z`` for the regulariser, whose gradient is multiplied by λ on its way back."""
        assert self._seen is not None  # begin was called
        task, regulariser = _Split.apply(z, self._weight, self._seen)
        return task, regulariser

    @torch.no_grad()
    def settle(self, world_size: int) -> None:
        """Take up what the backward pass has measured, on all ranks."""
        seen, weight = self._seen, self._weight
        if seen is None or weight is None:
            return
        if world_size > 1:
            dist.all_reduce(seen)
            # Of losses that every rank has scaled by the number of ranks.
            seen /= world_size**2
        both = (seen[_TASK] > 0) & (seen[_REGULARISER] > 0) & seen.isfinite().all()
        norms = seen[: len(self.smoothed)]
        self.smoothed.copy_(torch.where(both, self.smoothed.lerp(norms, 1 / _STEPS), self.smoothed))
        length = seen[_REGULARISER].sqrt() / seen[_TASK].sqrt()
        cosine = seen[_PRODUCT] / (seen[_TASK] * seen[_REGULARISER]).sqrt()
        told = torch.stack([weight.double(), weight * length, cosine, (cosine < 0).double(), torch.ones_like(cosine)])
        self.epoch.add_(torch.where(both, told, 0.0))
        self._seen = None

    def take(self) -> dict[str, float]:
        """Means of the epoch's steps, which starts anew: ``weight`` λ, ``share`` reached, ``cosine`` between the two
        gradients, ``opposed``, the share of steps in which it was negative. Waits for the device."""
        weight, share, cosine, opposed, steps = self.epoch.tolist()
        self.epoch.zero_()
        means = {"weight": weight, "share": share, "cosine": cosine, "opposed": opposed}
        return {f"regulariser/{name}": value / steps for name, value in means.items()} if steps else {}


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        ctx.weight, ctx.seen = weight, seen
        ctx.set_materialize_grads(False)
        return z.view_as(z), z.view_as(z)

    @staticmethod
    def backward(ctx: Any, task: Tensor | None, regulariser: Tensor | None) -> tuple[Tensor | None, None, None]:
        if task is not None:
            ctx.seen[_TASK] += task.square().sum()
        if regulariser is None:
            return task, None, None
        ctx.seen[_REGULARISER] += regulariser.square().sum()
        weighted = ctx.weight.to(regulariser.dtype) * regulariser
        if task is None:
            return weighted, None, None
        ctx.seen[_PRODUCT] += (task * regulariser).sum()
        return task + weighted, None, None
