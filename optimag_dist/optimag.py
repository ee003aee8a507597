"""OptiMAG in three lines of any torch loop: look the graph up, regularise the embeddings."""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from optimag_dist.types import GraphPrior, InputError
from optimag_dist.ufgw import (
    AlignmentRegulariser,
    LocalRegulariser,
    RobustRegulariser,
    UFGWDiagnostics,
    UFGWRegulariser,
)
from optimag_dist.ufgw.backend import outside_graphs
from optimag_dist.ufgw.options import AlignmentOptions, LocalOptions, RobustOptions, UFGWOptions
from optimag_dist.ufgw.validation import check_tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Rows of a dense prior that are looked through at once.
_BLOCK = 256


class OptiMAG(nn.Module):
    """Aligns each modality's structure with the graph's by unbalanced fused Gromov-Wasserstein (arXiv 2601.22856).

        optimag = OptiMAG("my.store/ppr/…")
        loss = task_loss + optimag({"text": h_text, "image": h_image}, node_ids)
        optimag.diagnostics().kept_mass["image"]        # (N,) low where the picture conflicts with the graph

    It has no parameters. The plans are found anew at every call and held fixed in the gradient.

    Args:
        prior: personalised PageRank of the graph: the path of a PPR artefact, an open one (or anything with
            ``submatrix(node_ids)``, and with ``num_nodes`` if ids are to be checked), or a dense (n, n) tensor of
            values ≥ 0 for a small graph. Of a dense one the ``k`` largest entries of each row and the diagonal are
            kept, on the host, as in an artefact: in a whole PPR matrix every pair is a little near, and among so many
            neighbours a conflict with the few that count is lost.
        options: of the regulariser: :class:`RobustOptions`, :class:`UFGWOptions`, the published problem, or
            :class:`LocalOptions`, whose plans leave mass where it is.
        k: entries kept of each row of a dense prior, at least 1; of an artefact it was chosen when that was made.

    Raises:
        InputError: the prior cannot be used.
    """

    def __init__(
        self,
        prior: str | PathLike[str] | GraphPrior | Tensor,
        options: AlignmentOptions = RobustOptions(),
        *,
        k: int = 32,
    ) -> None:
        super().__init__()
        self.regulariser: AlignmentRegulariser
        # The most particular first.
        if isinstance(options, RobustOptions):
            self.regulariser = RobustRegulariser(options)
        elif isinstance(options, UFGWOptions):
            self.regulariser = UFGWRegulariser(options)
        elif isinstance(options, LocalOptions):
            self.regulariser = LocalRegulariser(options)
        else:
            raise InputError(
                f"options: got {type(options).__name__}, needed RobustOptions, UFGWOptions or LocalOptions"
            )
        self.prior: GraphPrior
        if isinstance(prior, (str, PathLike)):
            # Loads pyarrow and numba, which take longer than all else here; a dense prior needs neither.
            from optimag_dist.ppr import PPRArtefact

            self.prior = PPRArtefact.open(Path(prior))
        elif isinstance(prior, Tensor):
            self.prior = _TopEntries(prior, k)
        elif callable(getattr(prior, "submatrix", None)):
            self.prior = prior
        else:
            raise InputError(
                f"prior: got {type(prior).__name__}; needed the path of a PPR artefact, an open one, or a dense (n, n) "
                "torch tensor (torch.as_tensor converts a numpy array)"
            )
        # None: the prior is the user's own and judges the ids itself.
        self.num_nodes: int | None = getattr(self.prior, "num_nodes", None)

    @outside_graphs
    def forward(
        self, embeddings: Mapping[str, Tensor], node_ids: Tensor, present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The regulariser over one group of nodes, to be added to the task's loss.

        Args:
            embeddings: modality → (N, d_m) encoder outputs, row i belongs to ``node_ids[i]``; widths may differ.
            node_ids: (N,) integers, distinct nodes of the graph, N ≥ 2, on any device (read on the host).
            present: modality → (N,) bool, False where a node lacks the modality; default all present.

        Returns:
            0-dim tensor: weight · Σ over modalities of what the options' kind says (:mod:`optimag_dist.ufgw.local`, or
            UFGW for transport).

        Raises:
            InputError: unusable node ids.
            ValueError: unusable embeddings, see :meth:`AlignmentRegulariser.forward`.
        """
        if not isinstance(embeddings, Mapping) or not embeddings:
            raise InputError(
                "embeddings: needed a mapping of modality names to (N, d) tensors, with at least one entry"
            )
        name, first = next(iter(embeddings.items()))
        device = check_tensor(f"embeddings[{name!r}]", first).device
        ids = self._checked_ids(node_ids)
        proximity = _as_tensor(self.prior.submatrix(ids.numpy()))
        value: Tensor = self.regulariser(embeddings, proximity.to(device), present)
        return value

    def diagnostics(self) -> UFGWDiagnostics:
        """Kept mass per modality, parts of the objective and solver status of the last call.

        Raises:
            RuntimeError: the module has not been called yet.
        """
        return self.regulariser.diagnostics()

    def _checked_ids(self, node_ids: Tensor) -> Tensor:
        if not isinstance(node_ids, Tensor) or node_ids.dtype not in _INTEGERS or node_ids.ndim != 1:
            got = (
                f"{node_ids.dtype} {tuple(node_ids.shape)}" if isinstance(node_ids, Tensor) else type(node_ids).__name__
            )
            raise InputError(f"node_ids: got {got}, needed a LongTensor of shape (N,) (torch.as_tensor converts)")
        if len(node_ids) < 2:
            raise InputError(f"node_ids: got {len(node_ids)} node(s); a structure needs at least 2")
        ids = node_ids.detach().cpu().long()
        ordered = ids.sort().values
        low, high = int(ordered[0]), int(ordered[-1])
        if low < 0 or (self.num_nodes is not None and high >= self.num_nodes):
            bound = "n" if self.num_nodes is None else self.num_nodes
            raise InputError(f"node_ids: range from {low} to {high}; the prior's nodes are 0 ≤ id < {bound}")
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise InputError(f"node_ids: node {int(twice[0])} comes more than once; needed distinct nodes")
        return ids


def _as_tensor(submatrix: Any) -> Tensor:
    try:
        return torch.as_tensor(submatrix)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"prior: its submatrix(node_ids) gave {type(submatrix).__name__}, needed (N, N) numbers: {error}"
        ) from error


class _TopEntries:
    """The k largest entries of each row of a dense prior, ties to the smaller id, and the diagonal.

    No tensor of a module: a buffer would be sent to all ranks at every step.
    """

    def __init__(self, prior: Tensor, k: int) -> None:
        if not isinstance(k, int) or k < 1:
            raise InputError(f"k={k!r}: needed a whole number of entries per row, at least 1")
        try:
            check_tensor("prior", prior)
        except ValueError as error:
            raise InputError(str(error)) from None
        if prior.requires_grad:
            raise InputError("prior requires a gradient, which does not reach it; pass prior.detach()")
        if prior.ndim != 2 or prior.shape[0] != prior.shape[1] or not len(prior):
            raise InputError(f"prior: got shape {tuple(prior.shape)}, needed (n, n) PPR")
        if bad := int((~prior.isfinite()).sum()):
            raise InputError(f"prior: {bad} values are NaN or infinite; needed PPR values ≥ 0")
        if bool((prior < 0).any()):
            raise InputError(f"prior: the minimum is {float(prior.min()):.3g}; needed PPR values ≥ 0")
        self.num_nodes = len(prior)
        rows, columns, values = (torch.cat(x).cpu().numpy() for x in zip(*_top_entries(prior, k), strict=True))
        self._entries = scipy.sparse.coo_array((values, (rows, columns)), shape=prior.shape).tocsr()

    def submatrix(self, node_ids: np.ndarray) -> np.ndarray:
        """As :meth:`PPRArtefact.submatrix`; float64 where the prior was."""
        found: np.ndarray = self._entries[node_ids][:, node_ids].toarray()
        return found


def _top_entries(prior: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows, columns and values of what is kept, some rows at a time."""
    for start, block in zip(range(0, len(prior), _BLOCK), prior.split(_BLOCK), strict=True):
        block = block.to(torch.promote_types(block.dtype, torch.float32))
        least = block.topk(min(k, len(prior)), dim=1).values[:, -1:]
        above, level = block > least, block == least
        kept = above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))
        kept.diagonal(start).fill_(True)
        row, column = (kept & (block > 0)).nonzero(as_tuple=True)
        yield row + start, column, block[row, column]
