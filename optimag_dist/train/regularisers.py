"""Regularisers by their kind: options, module, and what a module tells of its last call."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeAlias

from pydantic import Field, SerializeAsAny, create_model
from torch import Tensor, nn

from optimag_dist.imported import load_kind
from optimag_dist.options import OptionsOfKind, section
from optimag_dist.types import InputError
from optimag_dist.ufgw import LocalOptions, TransportOptions, UFGWOptions

# Kind → where its module stands.
REGULARISERS = {
    "local": "optimag_dist.ufgw:LocalRegulariser",
    "transport": "optimag_dist.ufgw:TransportRegulariser",
}


class RegulariserOptions(OptionsOfKind):
    """What every regulariser has.

    Attributes:
        weight: λ, factor of the regulariser in the loss; 0 trains without it.
    """

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)


def _section_of(options: type[UFGWOptions], kind: str, name: str) -> type[RegulariserOptions]:
    """The section with the keys, defaults and bounds of ``options``; pickled as ``name`` of this module."""
    keys: dict[str, Any] = {each.name: (each.type, Field(each.default, **each.metadata)) for each in fields(options)}
    keys["kind"] = (str, kind)
    return create_model(name, __base__=RegulariserOptions, __module__=__name__, __doc__=options.__doc__, **keys)


LocalSection = _section_of(LocalOptions, "local", "LocalSection")
TransportSection = _section_of(TransportOptions, "transport", "TransportSection")
_SECTIONS = {"local": LocalSection, "transport": TransportSection}


def _options_of(kind: str) -> type[RegulariserOptions]:
    if kind in _SECTIONS:
        return _SECTIONS[kind]
    options = getattr(load_kind(kind, REGULARISERS, nn.Module, "kind"), "options_class", RegulariserOptions)
    if not (isinstance(options, type) and issubclass(options, RegulariserOptions)):
        raise InputError(f"{kind!r}: its options_class must be a subclass of RegulariserOptions; got {options!r}")
    return options


AnyRegulariser: TypeAlias = Annotated[
    RegulariserOptions,
    section(_options_of, "local", "needed a section of the regulariser, such as {weight: 50}"),
    SerializeAsAny(),
]


def make_regulariser(options: RegulariserOptions) -> nn.Module:
    """The module that ``options`` mean: ``(embeddings, proximity, present)`` → its weighted value, as of
    :class:`~optimag_dist.ufgw.UFGWRegulariser`. ``InputError`` where a user's constructor does not take its options."""
    settings = options.model_dump(exclude={"kind"})
    cls: Any = load_kind(options.kind, REGULARISERS, nn.Module, "regulariser.kind")
    if options.kind in REGULARISERS:
        module: nn.Module = cls(cls.options_class(**settings))
        return module
    try:
        return cls(**settings)
    except TypeError as error:
        raise InputError(f"regulariser.kind={options.kind}: cannot be made from {settings}: {error}") from error


def has_diagnostics(regulariser: nn.Module) -> bool:
    """Whether it tells what it kept; only ``(embeddings, proximity, present)`` → value is asked of all."""
    return hasattr(regulariser, "diagnostics")


def kept_mass_of(regulariser: Any) -> Mapping[str, Tensor]:
    """Modality → (N,) kept mass in the last call, NaN where absent; empty where there are no diagnostics."""
    kept: Mapping[str, Tensor] = regulariser.diagnostics().kept_mass if has_diagnostics(regulariser) else {}
    return kept


def signs_of(regulariser: Any) -> Mapping[str, Tensor]:
    """Sign of a useless plan → (modalities,) bool, of the last call; empty where its diagnostics have no status."""
    status = getattr(regulariser.diagnostics(), "status", None) if has_diagnostics(regulariser) else None
    return {} if status is None else status.signs
