"""Who chooses the points, and who stops trials: this package's options as Ray Tune's objects."""

import itertools
import json
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from optimag_dist.files import atomic
from optimag_dist.train.options import RunConfig
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.space import Point, as_optuna, from_optuna, num_trials
from optimag_dist.tune.trial import trial_directory


class ParzenSearch(OptunaSearch):
    """Optuna's tree-structured Parzen estimator; gives every point a trial directory of its own."""

    def __init__(self, config: RunConfig, options: SweepOptions) -> None:
        several = len(options.metrics) > 1
        names, modes = list(options.metrics), list(options.metrics.values())
        super().__init__(
            space=as_optuna(options.space),
            metric=names if several else names[0],
            mode=modes if several else modes[0],
            seed=options.search.seed,
        )
        # Tune pickles all of this object into the sweep's directory, where a URI's secrets must not stand: no config.
        self._trials, self._options = trial_directory(config, ""), options
        self._claimed: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        point = from_optuna(self._options.space, super().suggest(trial_id))
        return {"chosen": {"trial": self._claim(point), "point": point}}

    def _claim(self, point: Point) -> str:
        """The first directory that is free, or that a sweep that was cut short had begun for the same point."""
        for number in itertools.count():
            trial = f"{number:03d}"
            file = self._trials / trial / "point.json"
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
            if trial not in self._claimed and known in (None, point):
                self._claimed.add(trial)
                with atomic(file) as temporary:
                    temporary.write_text(json.dumps(point), encoding="utf-8")
                return trial
        raise AssertionError


def search_arguments(
    config: RunConfig, options: SweepOptions, points: list[Point] | None, concurrency: int
) -> dict[str, Any]:
    """The arguments of ``tune.run`` that say which points are tried, each as ``config["chosen"]``, and how many at a
    time."""
    if points is None:
        return {
            "search_alg": ConcurrencyLimiter(ParzenSearch(config, options), concurrency),
            "num_samples": num_trials(options),
        }
    chosen = [{"trial": f"{number:03d}", "point": point} for number, point in enumerate(points)]
    return {
        "search_alg": BasicVariantGenerator(max_concurrent=concurrency),
        "config": {"chosen": tune.grid_search(chosen)},
    }


def make_scheduler(options: SweepOptions, last_epoch: int) -> TrialScheduler:
    """ASHA over the trials' own count of epochs (Tune's starts again when a trial does), or none."""
    if options.scheduler.method == "none":
        return FIFOScheduler()
    metric, mode = next(iter(options.metrics.items()))
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode=mode,
        # Trials end by themselves.
        max_t=last_epoch + 1,
        grace_period=options.scheduler.grace,
        reduction_factor=options.scheduler.reduction,
    )
