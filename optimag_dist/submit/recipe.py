"""What a job's YAML file says, and the commands it comes to once its parameters are filled in."""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from optimag_dist.options import Options, load_options
from optimag_dist.types import InputError

# Stands for the folder of the job's own files, which is known only where the job runs.
HERE = "{here}"
OVERRIDES = "{overrides}"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_SECRET_WORDS = {"token", "secret", "password", "passwd", "key", "apikey", "credential", "credentials"}
# Refuses more than storage.without_secrets can cut out: a malformed address may hold a password too.
_URI_WITH_SECRET = re.compile(r"://[^/\s]*:[^/\s]*@|[?&][^=&\s]*(?:secret|token|password|access_key)[^=&\s]*=", re.I)
_NOT_HERE = (
    "which everyone reads who may look at the cluster's dashboard; give it to the nodes by the cluster's own secrets "
    "(cluster/README.md)"
)

Value = str | int | float | bool


class EntrypointOptions(Options):
    """What the cluster sets aside for the process that runs the steps (0 cores run it on the head), beside what its
    workers ask for themselves: memory in bytes, custom resource → amount, label a node must have → its value."""

    num_cpus: float = Field(0, ge=0)
    num_gpus: float = Field(0, ge=0)
    memory: int = Field(0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class RuntimeEnvOptions(Options):
    """What the job's processes find on every node: packages that are installed for it, and environment variables.
    Everyone who may look at the dashboard reads these: no secrets."""

    pip: tuple[str, ...] = ()
    env_vars: dict[str, str] = Field(default_factory=dict)


class Recipe(Options):
    """A job: ``optimag`` commands that run one after the other.

    Attributes:
        name: of the job; ``{name}`` in a step.
        parameters: name → value; ``{name}`` in a step stands for the value, ``name=value`` on the command line
            changes it.
        steps: commands as typed in a terminal, without the leading ``optimag``. ``{here}`` is the folder of the job's
            own files, ``{overrides}`` takes what the command line adds beyond ``parameters``.
        directory: where the steps run and their relative paths lie; on a cluster a path that every node sees.
            Default: the directory the job is submitted from.
        working_dir: the job's own files, relative to the recipe; they are copied to the cluster. Default: none.
        excludes: names or globs of files and folders within it that are not copied, besides hidden ones, caches,
            ``stores`` and ``runs``.
        ship: copy this ``optimag_dist`` to the cluster too, for nodes that have another version, or none but all it
            needs.
        runtime_env, entrypoint: what it asks of the cluster.
        metadata: name → text that the dashboard shows beside the job.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    parameters: dict[str, Value] = Field(default_factory=dict)
    steps: tuple[str, ...] = Field(min_length=1)
    directory: Path | None = None
    working_dir: Path | None = None
    excludes: tuple[str, ...] = ()
    ship: bool = False
    runtime_env: RuntimeEnvOptions = RuntimeEnvOptions()
    entrypoint: EntrypointOptions = EntrypointOptions()
    metadata: dict[str, str] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _own_names(cls, values: dict[str, Value]) -> dict[str, Value]:
        taken = {"name", "here", "overrides"} & values.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} have a meaning of their own; choose other names")
        return values

    @model_validator(mode="after")
    def _placeholders_are_known(self) -> "Recipe":
        known = {"name", "here", "overrides", *self.parameters}
        for step in self.steps:
            words = shlex.split(step)
            unknown = [name for word in words for name in _PLACEHOLDER.findall(word) if name not in known]
            if unknown:
                raise ValueError(f"step {step!r}: {{{unknown[0]}}} is none of the parameters {sorted(self.parameters)}")
            if any(OVERRIDES in word and word != OVERRIDES for word in words):
                raise ValueError(f"step {step!r}: {OVERRIDES} stands for whole words; set blanks around it")
        return self


@dataclass(frozen=True)
class Job:
    """A recipe with its parameters filled in: the words of each step, in which only ``{here}`` is left, where they run,
    and the folder of the job's own files, both absolute."""

    recipe: Recipe
    steps: tuple[tuple[str, ...], ...]
    directory: Path
    files: Path | None


def load_job(path: Path, changes: Sequence[str] = ()) -> Job:
    """Read a recipe and change it by ``key=value``.

    A key is a parameter's name or a key of the recipe itself (``name``, ``directory``, ``entrypoint.num_cpus``, …); any
    other goes to the step that has ``{overrides}``.

    Raises:
        InputError: the recipe is not there or not valid, a change belongs nowhere, or a step holds a secret.
    """
    before = load_options(Recipe, path)
    own: list[str] = []
    overrides: list[str] = []
    for change in changes:
        key = change.partition("=")[0]
        if key in before.parameters:
            own.append(f"parameters.{change}")
        else:
            (own if key.partition(".")[0] in Recipe.model_fields else overrides).append(change)
    if overrides and not any(OVERRIDES in step for step in before.steps):
        key = overrides[0].partition("=")[0]
        known = [*before.parameters, *Recipe.model_fields]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{path}: {key!r} is no parameter and no key of this job; {hint}known: {', '.join(known)}")
    recipe = load_options(Recipe, path, own)
    values = {name: str(v).lower() if isinstance(v, bool) else str(v) for name, v in recipe.parameters.items()}
    values["name"] = recipe.name

    def fill(word: str) -> Sequence[str]:
        # Word by word, so that a value with blanks stays one word.
        filled = _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word)
        return overrides if word == OVERRIDES else [filled]

    steps = tuple(tuple(part for word in shlex.split(step) for part in fill(word)) for step in recipe.steps)
    _refuse_secrets(path, recipe, steps)
    files = None if recipe.working_dir is None else (path.parent / recipe.working_dir).resolve()
    if files is not None and not files.is_dir():
        raise InputError(f"{path}: working_dir {files} is no folder")
    return Job(recipe, steps, Path.cwd() / (recipe.directory or ""), files)


def _refuse_secrets(path: Path, recipe: Recipe, steps: Iterable[Iterable[str]]) -> None:
    """Everyone who may look at the cluster's dashboard reads what a job is given; the values are not repeated here."""
    for section in ("runtime_env.env_vars", "parameters", "metadata"):
        for name in attrgetter(section)(recipe):
            if _SECRET_WORDS & set(re.split(r"[^a-z]+", name.lower())):
                raise InputError(f"{path}: {section}.{name} looks like a secret, {_NOT_HERE}")
    if any(_URI_WITH_SECRET.search(word) for step in steps for word in step):
        raise InputError(f"{path}: an address in a step has a password or key in it, {_NOT_HERE}")
