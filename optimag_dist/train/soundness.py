"""Whether a fit's numbers are still finite: noted on the device in every step, looked at now and then."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from optimag_dist.train.metrics import StepMetrics
from optimag_dist.types import Diverged

_NEVER = torch.iinfo(torch.int64).max


class Soundness:
    """Knows the first step of an epoch in which an embedding, a loss or the gradient was not finite. Of several that go
    wrong in one step the first is blamed; ``remedy`` is for what goes wrong after the first step."""

    def __init__(
        self,
        modalities: Sequence[str],
        tasks: Sequence[str],
        module: nn.Module,
        device: torch.device,
        world_size: int,
        remedy: str,
    ) -> None:
        self._modalities, self._tasks = modalities, tasks if len(tasks) > 1 else []
        self._words = [
            *(f"the embeddings of modality {name!r} are" for name in self._modalities),
            *(f"the loss of task {name!r} is" for name in self._tasks),
            *("the task's loss is", "the regulariser's value is", "the gradient is", "the weights are"),
        ]
        self._module, self._world_size, self._remedy = module, world_size, remedy
        self._first = torch.full((len(self._words),), _NEVER, device=device)

    def note(self, step: int, metrics: StepMetrics, largest: Mapping[str, Tensor]) -> None:
        """Look at a step after its backward pass, as StepLoss tells of it; does not wait for the device."""
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        losses = [*(metrics.task_losses[name] for name in self._tasks), metrics.task_loss, metrics.alignment]
        values = [*(largest[name] for name in self._modalities), *losses, self._largest(gradients)]
        self._note(step, [torch.as_tensor(value, device=self._first.device) for value in values])

    def check(self, epoch: int, step: int) -> None:
        """Look at the weights after ``step``, wait for the device, and raise ``Diverged`` on all ranks alike."""
        tensors = [p.detach() for p in self._module.parameters() if p.requires_grad]
        tensors += [b for b in self._module.buffers() if b.is_floating_point()]
        self._note(step, [*torch.zeros(len(self._words) - 1, device=self._first.device), self._largest(tensors)])
        if self._world_size > 1:
            dist.all_reduce(self._first, dist.ReduceOp.MIN)
        first = self._first.tolist()
        self._first.fill_(_NEVER)
        if (when := min(first)) == _NEVER:
            return
        what = self._words[first.index(when)]
        remedy = self._remedy
        if epoch == when == 0 and what != self._words[-1]:
            remedy = "nothing was learned before it, so optim.lr is not to blame: look at the model and its input"
        raise Diverged(f"{what} not finite in epoch {epoch + 1}, step {when + 1}: {remedy}")

    def _note(self, step: int, values: list[Tensor]) -> None:
        seen = torch.stack([value.detach().double() for value in values])
        mine = self._first[: len(seen)]
        mine.copy_(torch.where(seen.isfinite(), mine, mine.clamp(max=step)))

    def _largest(self, tensors: Iterable[Tensor]) -> Tensor:
        """The largest magnitude, NaN where there is one; 0 of no tensors."""
        tensors = [tensor for tensor in tensors if tensor.numel()]
        return get_total_norm(tensors, torch.inf) if tensors else self._first.new_zeros(())
