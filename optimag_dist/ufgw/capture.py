"""The solver's outer steps as one CUDA graph.

Written and reviewed, not yet run on a GPU (docs/ufgw.md).

At training sizes a step is a few hundred launches of some microseconds' work, and issuing them from Python takes longer
than doing them. Nothing in the steps depends on a value, so their launches are recorded once per shape and replayed.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")

# Every graph keeps its memory, a few (b, N, N) matrices; training needs one or two shapes.
_KEPT = 4
_recorded: "OrderedDict[Any, _Recording | None]" = OrderedDict()


class _Recording:
    def __init__(self, run: Callable[[Any], Any], inputs: Any) -> None:
        self.inputs = map_tensors(Tensor.clone, inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(map_tensors(Tensor.clone, inputs))  # libraries set themselves up, kernels are compiled
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's, a loader's) may use the device meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = run(self.inputs)

    def replay(self, inputs: Any) -> Any:
        for mine, theirs in zip(tensors(self.inputs), tensors(inputs), strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return map_tensors(Tensor.clone, self.outputs)


def replayed(run: Callable[[Inputs], Outputs], inputs: Inputs, options: Any) -> Outputs:
    """``run(inputs)`` from a recording of its launches, or as it is where recording fails.

    ``run`` reads no value back, and computes from the tensors of ``inputs``, a dataclass of tensors and dataclasses on
    one CUDA device, and from the hashable ``options`` alone. What ``inputs`` have cached is not used.
    """
    key = options, tuple((x.shape, x.dtype, x.device) for x in tensors(inputs))
    if key not in _recorded:
        try:
            _recorded[key] = _Recording(run, inputs)
        except RuntimeError as error:
            warnings.warn(f"solving without a CUDA graph, which is slower: {error}", stacklevel=2)
            _recorded[key] = None
        if len(_recorded) > _KEPT:
            _recorded.popitem(last=False)
    _recorded.move_to_end(key)
    recording = _recorded[key]
    return run(inputs) if recording is None else recording.replay(inputs)


def tensors(x: Any) -> list[Tensor]:
    """Those in the fields of a dataclass, and of the dataclasses within, in order."""
    if isinstance(x, Tensor):
        return [x]
    return [t for field in fields(x) for t in tensors(getattr(x, field.name))] if is_dataclass(x) else []


def map_tensors(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """The same dataclass with ``f`` applied to each of :func:`tensors`, and nothing cached."""
    if isinstance(x, Tensor):
        return f(x)
    if not is_dataclass(x) or isinstance(x, type):
        return x
    return replace(x, **{field.name: map_tensors(f, getattr(x, field.name)) for field in fields(x)})
