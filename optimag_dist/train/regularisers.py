"""Regularisers by their kind: options, module, and what a module tells of its last call."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from optimag_dist.imported import load_kind
from optimag_dist.options import OptionsOfKind, section
from optimag_dist.types import InputError

# Kind → where its module stands.
REGULARISERS = {"ufgw": "optimag_dist.ufgw:UFGWRegulariser"}


class RegulariserOptions(OptionsOfKind):
    """What every regulariser has.

    Attributes:
        weight: λ, factor of the regulariser in the loss; 0 trains without it.
    """

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)


class UFGWOptions(RegulariserOptions):
    """The UFGW regulariser; see :class:`optimag_dist.ufgw.UFGWRegulariser` for the mathematics.

    Attributes:
        plan: ``local`` leaves mass where it is and judges nodes by their neighbourhood; ``transport`` is the published
            problem, which may move mass to other nodes.
        alpha: weight of structure, 0 to 1; of ``transport`` against anchors.
        rho: weight of the marginals; small lets conflicting nodes lose mass, ``.inf`` keeps all of it.
        agreement: how much disagreement with the other modalities counts against a node (``local``).
        consistency: weight of the modalities' distances from each other in the loss (``local``).
        delta: floor under PPR values in the graph cost.
        differentiate: the gradient also goes through what is kept (``local``).
        tau: width of the anchor prior (``transport``, as all that follow).
        epsilon: entropy.
        prior: ``ppr`` anchors nodes to their PPR neighbours, ``identity`` to themselves alone.
        n_outer, n_sinkhorn: linearisations, and Sinkhorn iterations in each.
    """

    kind: str = "ufgw"
    weight: float = Field(50.0, ge=0, allow_inf_nan=False)
    plan: Literal["local", "transport"] = "local"
    alpha: float = Field(0.6, ge=0, le=1)
    rho: float = Field(0.5, gt=0)
    agreement: float = Field(0.6, ge=0, allow_inf_nan=False)
    consistency: float = Field(0.0, ge=0, allow_inf_nan=False)
    delta: float = Field(1e-5, gt=0, allow_inf_nan=False)
    differentiate: bool = False
    tau: float = Field(0.5, gt=0, allow_inf_nan=False)
    epsilon: float = Field(0.01, gt=0, allow_inf_nan=False)
    prior: Literal["ppr", "identity"] = "ppr"
    n_outer: int = Field(5, ge=1)
    n_sinkhorn: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _can_be_differentiated(self) -> "UFGWOptions":
        if self.differentiate and self.plan != "local":
            raise ValueError("differentiate=true needs plan=local: a transport plan is always held fixed")
        return self


def _options_of(kind: str) -> type[RegulariserOptions]:
    if kind in REGULARISERS:
        return UFGWOptions
    options = getattr(load_kind(kind, REGULARISERS, nn.Module, "kind"), "options_class", RegulariserOptions)
    if not (isinstance(options, type) and issubclass(options, RegulariserOptions)):
        raise InputError(f"{kind!r}: its options_class must be a subclass of RegulariserOptions; got {options!r}")
    return options


AnyRegulariser: TypeAlias = Annotated[
    RegulariserOptions,
    section(_options_of, "ufgw", "needed a section of the regulariser, such as {weight: 50}"),
    SerializeAsAny(),
]


def make_regulariser(options: RegulariserOptions) -> nn.Module:
    """The module that ``options`` mean: ``(embeddings, proximity, present)`` → its weighted value, as of
    :class:`~optimag_dist.ufgw.UFGWRegulariser`.

    Raises:
        InputError: its constructor does not take its own options.
    """
    settings = options.model_dump(exclude={"kind"})
    try:
        return load_kind(options.kind, REGULARISERS, nn.Module, "regulariser.kind")(**settings)
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
