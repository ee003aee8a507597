"""A run directory as the report reads it: by every fit's own files, which are there while it runs, and right where a
finished run was resumed with more seeds and cut short; the tables at the run's end are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimag_dist.options import load_options
from optimag_dist.train.log import read_records, read_result
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.types import InputError


@dataclass(frozen=True)
class FitRecord:
    """One variant with one seed: the records of ``metrics.jsonl``, that of ``result.json``, None while the fit is not
    finished, and what happened where it ``diverged`` and has no result."""

    variant: str
    seed: int
    directory: Path
    epochs: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None
    diverged: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds spent in training epochs, evaluation left out."""
        return sum(record["seconds"] for record in self.epochs)


@dataclass(frozen=True)
class Run:
    """What was to be trained, and every planned fit, finished or not."""

    directory: Path
    config: RunConfig
    variants: Mapping[str, VariantConfig]
    fits: tuple[FitRecord, ...]

    @property
    def finished(self) -> list[FitRecord]:
        return [fit for fit in self.fits if fit.result is not None]

    @property
    def diverged(self) -> list[FitRecord]:
        return [fit for fit in self.fits if fit.diverged is not None]

    def of(self, variant: str, *, finished: bool = True) -> list[FitRecord]:
        """The variant's fits in the order of the seeds; by default the finished ones only."""
        return [fit for fit in (self.finished if finished else self.fits) if fit.variant == variant]


def read_run(directory: Path) -> Run:
    """Read the run in ``directory``. ``InputError``: there is no run, its configuration does not fit, or none of its
    fits is finished."""
    directory = Path(directory)
    if not (directory / "config.yaml").is_file():
        raise InputError(
            f"{directory}: no run here (no config.yaml); name a directory that optimag train has written, "
            "for example runs/NAME"
        )
    config = load_options(RunConfig, directory / "config.yaml")
    variants = config.resolve()
    fits = tuple(_read_fit(directory, variant, seed) for variant in variants for seed in config.seeds)
    run = Run(directory, config, variants, fits)
    if run.finished:
        return run
    if run.diverged:
        raise InputError(
            f"{directory}: {len(run.diverged)} of the {len(fits)} fits of this run diverged and none is finished, "
            f"so there is nothing to report; the first one said: {run.diverged[0].diverged}"
        )
    raise InputError(
        f"{directory}: none of the {len(fits)} fits of this run is finished, so there is nothing to report; "
        f"go on with: optimag train {directory / 'config.yaml'} --resume"
    )


def _read_fit(directory: Path, variant: str, seed: int) -> FitRecord:
    folder = directory / variant / f"seed-{seed}"
    result = read_result(folder) or {}
    diverged = result.get("diverged")
    epochs = tuple(read_records(folder / "metrics.jsonl"))
    return FitRecord(variant, seed, folder, epochs, result if result and diverged is None else None, diverged)
