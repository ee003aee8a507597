"""Jobs: recipes of ``optimag`` commands that run here or on a Ray cluster; only :mod:`.cluster` needs Ray."""

from optimag_dist.submit.recipe import Job, Recipe, load_job
from optimag_dist.submit.steps import run_steps

__all__ = ["Job", "Recipe", "load_job", "run_steps"]
