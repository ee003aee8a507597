"""Regularisers by their kind: options, module, and what a module tells of its last call."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeAlias

from pydantic import Field, SerializeAsAny, create_model
from torch import Tensor, nn

from optimag_dist.imported import load_kind
from optimag_dist.options import OptionsOfKind, section
from optimag_dist.types import InputError
from optimag_dist.ufgw import AlignmentOptions, LocalOptions, RobustOptions, UFGWOptions

# Kind → where its module stands.
REGULARISERS = {
    "robust": "optimag_dist.ufgw:RobustRegulariser",
    "local": "optimag_dist.ufgw:LocalRegulariser",
    "ufgw": "optimag_dist.ufgw:UFGWRegulariser",
}


class RegulariserOptions(OptionsOfKind):
    """What every regulariser has.

    Attributes:
        weight: λ, factor of the regulariser in the loss; 0 trains without it. Default: whatever gives it its ``share``.
        share: of the encoders' gradient, as a multiple of the task's (:mod:`optimag_dist.train.share`); 0 trains
            without the regulariser. A given weight stands as it is.
        warm_up: epochs over which the share rises from 0, and before which no fit's patience runs.
    """

    weight: float | None = Field(None, ge=0, allow_inf_nan=False)
    share: float = Field(1.0, ge=0, allow_inf_nan=False)
    warm_up: int = Field(5, ge=0)

    @property
    def active(self) -> bool:
        """Whether there is one in the loss."""
        return (self.share if self.weight is None else self.weight) > 0


def _section_of(options: type[AlignmentOptions], kind: str, name: str) -> type[RegulariserOptions]:
    """The section with the keys, defaults and bounds of ``options``; pickled as ``name`` of this module."""
    own = (each for each in fields(options) if each.name not in RegulariserOptions.model_fields)
    keys: dict[str, Any] = {each.name: (each.type, Field(each.default, **each.metadata)) for each in own}
    keys["kind"] = (str, kind)
    return create_model(name, __base__=RegulariserOptions, __module__=__name__, __doc__=options.__doc__, **keys)


LocalSection = _section_of(LocalOptions, "local", "LocalSection")
UFGWSection = _section_of(UFGWOptions, "ufgw", "UFGWSection")
RobustSection = _section_of(RobustOptions, "robust", "RobustSection")
_SECTIONS = {"local": LocalSection, "ufgw": UFGWSection, "robust": RobustSection}


def _options_of(kind: str) -> type[RegulariserOptions]:
    if kind in _SECTIONS:
        return _SECTIONS[kind]
    options = getattr(load_kind(kind, REGULARISERS, nn.Module, "kind"), "options_class", RegulariserOptions)
    if not (isinstance(options, type) and issubclass(options, RegulariserOptions)):
        raise InputError(f"{kind!r}: its options_class must be a subclass of RegulariserOptions; got {options!r}")
    return options


AnyRegulariser: TypeAlias = Annotated[
    RegulariserOptions,
    section(_options_of, "robust", "needed a section of the regulariser, such as {weight: 50}"),
    SerializeAsAny(),
]


def make_regulariser(options: RegulariserOptions) -> nn.Module:
    """The module that ``options`` mean: ``(embeddings, proximity, present)`` → its weighted value, as of
    :class:`~optimag_dist.ufgw.AlignmentRegulariser`; of weight 1 where none is given. ``InputError`` where a user's
    constructor does not take its options."""
    settings = {"weight": 1.0} | options.model_dump(exclude={"kind", "share", "warm_up"}, exclude_none=True)
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
