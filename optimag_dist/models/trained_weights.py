"""State dicts that hold what was trained, and not what came from a checkpoint that everybody can load again."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def leave_out_frozen(module: nn.Module) -> None:
    """Have ``module.state_dict()`` leave out what is not trained, and strict ``load_state_dict`` accept its absence.

    Left out are parameters with ``requires_grad=False``, and the buffers of parts all of whose parameters are such (a
    part without parameters goes with the part that holds it): so a frozen batch normalisation is to be kept in
    evaluation mode. What is frozen is asked each time; a state dict that holds it is loaded whole. Works inside any
    other module, DDP included.
    """
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_fill_in)


def _leave_out(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    for name, _ in _frozen(module, prefix):
        del state_dict[name]


def _fill_in(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    # A missing value is told by a hook that does not know the prefix; copying a value onto itself costs nothing.
    for name, value in _frozen(module, prefix):
        state_dict.setdefault(name, value)


def _frozen(module: nn.Module, prefix: str, inside_frozen: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names in the state dict, and values, of what is not trained."""
    parameters = list(module.parameters())
    frozen = not any(p.requires_grad for p in parameters) if parameters else inside_frozen
    for name, parameter in module.named_parameters(prefix.removesuffix("."), recurse=False, remove_duplicate=False):
        if not parameter.requires_grad:
            yield name, parameter
    if frozen:
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _frozen(child, f"{prefix}{name}.", frozen)
