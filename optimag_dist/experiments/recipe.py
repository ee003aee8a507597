"""The YAML file of an experiment: graphs, arms that are compared on them, and studies that vary one thing or two."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from optimag_dist.datasets import PlantedOptions, dataset_schema
from optimag_dist.options import FolderName, FreeName, Options, merge, parse_overrides, read_mapping, validate_options
from optimag_dist.store import LinkSplitOptions
from optimag_dist.store.importers import FOLDER_LAYOUTS, folder_layout
from optimag_dist.train.options import VariantConfig
from optimag_dist.train.renamed import refuse_renamed
from optimag_dist.tune.options import Distribution
from optimag_dist.types import InputError

# Keys of ``vary`` that change the planted graph instead of the run.
_PLANTED = "planted."
# Sections that say what is asked, not how it is answered.
_GIVEN = ("planted", "task")


class GraphOptions(Options):
    """One graph, from exactly one place.

    Attributes:
        dataset: one that ships with the package.
        source: anything that ``optimag ingest`` reads; relative paths start at the recipe.
        planted: a synthetic one with known conflicts.
        in_data: stands for every dataset in the experiment's ``data``, each by the name of its folder, with ``-links``
            after it where edges are held out; all of them ``optional``.
        optional: leave the graph out, and say so, where ``source`` is not there or lacks what a study's task needs.
        links: edges held out for link prediction, as by ``optimag split``; default: none.
    """

    dataset: str | None = None
    source: Path | None = None
    planted: PlantedOptions | None = None
    in_data: Literal[True] | None = None
    optional: bool = False
    links: LinkSplitOptions | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "GraphOptions":
        given = [name for name in ("dataset", "source", "planted", "in_data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needed exactly one of dataset, source, planted and in_data, got {given or 'none of them'}"
            )
        return self


class TuningOptions(Options):
    """The search that every arm gets before it is compared, the same number of trials for each.

    Attributes:
        trials: points per arm; the first is the arm as it stands, the others are drawn.
        seeds: that every point is fitted with; not those of the comparison.
        space: key → how it is searched, for every arm; all arms are given the same values.
        arms: arm → keys that only it has.
    """

    trials: int = Field(8, ge=1)
    seeds: tuple[int, ...] = Field((1000, 1001), min_length=1)
    space: dict[str, Distribution] = Field(default_factory=dict)
    arms: dict[str, dict[str, Distribution]] = Field(default_factory=dict)


class StudyOptions(Options):
    """One question.

    Attributes:
        question: in a sentence, for the report.
        graphs: by name.
        arms: by name; default: all of the experiment's.
        compare: arm → the arm it is paired with, seed by seed.
        vary: what is varied, every combination. A key of the run (``regulariser.rho``) or of the planted graph
            (``planted.homophily``) with its values; or a name of your own with label → changes.
        changes: to the experiment's base, for this study.
        tuning: the search before the comparison; default: none.
        detect: do not train; ask only how well kept mass finds planted conflicts in the stored features.
        seeds: default: the experiment's.
    """

    question: str
    graphs: tuple[str, ...] = Field(min_length=1)
    arms: tuple[str, ...] = ()
    compare: dict[str, str] = Field(default_factory=dict)
    vary: dict[str, tuple[Any, ...] | dict[str, dict[str, Any]]] = Field(default_factory=dict)
    changes: dict[str, Any] = Field(default_factory=dict)
    tuning: TuningOptions | None = None
    detect: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def varied(self) -> set[str]:
        """Keys of the run and of the planted graph that ``vary`` changes."""
        return set[str]().union(*map(self._changed_by, self.vary))

    @property
    def given(self) -> list[str]:
        """What of ``vary`` changes the task or the graph: a study asks about all its values, nobody searches them."""
        return [name for name in self.vary if any(key.partition(".")[0] in _GIVEN for key in self._changed_by(name))]

    def _changed_by(self, name: str) -> set[str]:
        values = self.vary[name]
        return set[str]().union(*values.values()) if isinstance(values, dict) else {name}


class ExperimentOptions(Options):
    """One ``optimag experiment``.

    Attributes:
        name: its folder.
        title, question: for the report.
        seeds: of every comparison.
        graphs: name → where it comes from.
        data: a folder with datasets of layouts that ``optimag ingest`` knows, for graphs ``in_data``; a relative path
            starts where the command runs.
        encoder: of datasets with the features of several encoders, which to take, as for ``optimag ingest``.
        base: sections of a run's configuration that all arms share.
        arms: name → changes to the base.
        studies: name → what is asked.
        only: names of the studies to run; default: all.
        quick: dotted key of the recipe → what takes its place, for a first look in a few minutes.
    """

    name: FolderName
    title: str
    question: str
    seeds: tuple[int, ...] = Field(min_length=1)
    graphs: dict[FreeName, GraphOptions] = Field(min_length=1)
    data: Path | None = None
    encoder: str | tuple[str, ...] | None = None
    base: dict[str, Any] = Field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    studies: dict[FreeName, StudyOptions] = Field(min_length=1)
    only: tuple[str, ...] = ()
    quick: dict[str, Any] = Field(default_factory=dict)

    @property
    def asked(self) -> dict[str, StudyOptions]:
        """The studies to run."""
        return {name: study for name, study in self.studies.items() if name in (self.only or self.studies)}

    @model_validator(mode="after")
    def _names_are_known(self) -> "ExperimentOptions":
        for one in self.only:
            if one not in self.studies:
                raise ValueError(f"only: no study is called {one!r}; there are {', '.join(self.studies)}")
        for name, study in self.studies.items():
            arms = study.arms or tuple(self.arms)
            asked: list[tuple[str, str, Mapping[str, Any]]] = [("graph", g, self.graphs) for g in study.graphs]
            asked += [("arm", a, self.arms) for a in study.arms]
            asked += [("arm", a, dict.fromkeys(arms)) for pair in study.compare.items() for a in pair]
            asked += [("arm", a, dict.fromkeys(arms)) for a in (study.tuning.arms if study.tuning else ())]
            for what, one, known in asked:
                if one not in known:
                    raise ValueError(f"studies.{name}: no {what} is called {one!r}; there are {', '.join(known)}")
            synthetic = any(key.startswith(_PLANTED) for key in study.varied) or study.detect
            for graph in study.graphs:
                if synthetic and self.graphs[graph].planted is None:
                    raise ValueError(f"studies.{name}: {graph!r} is not planted, so its conflicts are not known")
        return self


@dataclass(frozen=True)
class Setting:
    """One combination of what a study varies, on one graph: ``planted`` are its options as varied, None for a real one,
    ``at`` is what is varied → value or label, for tables, and ``changes`` dotted key of the run → value."""

    graph: str
    planted: PlantedOptions | None
    at: Mapping[str, Any]
    changes: Mapping[str, Any]


def find_recipe(name: str) -> Path:
    """The recipe called ``name``: a YAML file, or one of ``jobs/experiments`` here or in this checkout."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    folders = [Path("jobs/experiments"), Path(__file__).parents[2] / "jobs" / "experiments"]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise InputError(f"no experiment is called {name!r}; there are {', '.join(known) or 'none'}; or give a YAML file")


def load_experiment(path: Path, overrides: list[str], *, quick: bool) -> ExperimentOptions:
    """Read a recipe, apply ``quick`` and then ``key=value`` overrides; ``InputError`` names what does not fit."""
    data = read_mapping(ExperimentOptions, path)
    if quick and isinstance(data.get("quick"), dict):
        data = merge(data, data["quick"], whole=True)
    data = merge(data, parse_overrides(overrides), whole=True)
    try:
        refuse_renamed(data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    experiment = _with_datasets(validate_options(ExperimentOptions, data, source=str(path)), path)
    for name, study in experiment.asked.items():
        for setting in settings(experiment, study):
            for arm in arms_of(experiment, study):
                configure(experiment, study, setting, arm, source=f"{path}: studies.{name}, arm {arm}")
    return experiment


def datasets_in(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Name → folder of each dataset of a known layout: ``folder`` itself, or those in it and in its folders, such as
    ``Movies`` and ``MAGB-Movies``; and the folders in it that hold none. ``InputError``: there is no dataset."""
    if not folder.is_dir():
        raise InputError(f"data={folder}: no such folder; needed one that holds datasets ({FOLDER_LAYOUTS})")
    if folder_layout(folder):
        return {folder.resolve().name: folder}, []
    found, others = dict[str, Path](), list[Path]()
    for child in _folders_in(folder):
        inner = [child] if folder_layout(child) else [each for each in _folders_in(child) if folder_layout(each)]
        found |= {"-".join(each.relative_to(folder).parts): each for each in inner}
        others += [] if inner else [child]
    if not found:
        names = ", ".join(each.name for each in others) or "none"
        raise InputError(f"data={folder}: no dataset there, nor in its folders ({names}); looked for {FOLDER_LAYOUTS}")
    return found, others


def _folders_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _with_datasets(experiment: ExperimentOptions, path: Path) -> ExperimentOptions:
    """``experiment`` with the datasets in place of the graphs ``in_data``; ``InputError`` where there are none."""
    if not any(graph.in_data for graph in experiment.graphs.values()):
        return experiment
    if experiment.data is None:
        raise InputError(f"{path}: needs data=DIR, a folder of downloaded datasets, each a folder ({FOLDER_LAYOUTS})")
    folder = experiment.data.expanduser().absolute()
    datasets, _ = datasets_in(folder)
    graphs: dict[str, GraphOptions] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, graph in experiment.graphs.items():
        made = {name: graph}
        if graph.in_data:
            made = {
                each if graph.links is None else f"{each}-links": GraphOptions(
                    source=place, optional=True, links=graph.links
                )
                for each, place in datasets.items()
            }
        graphs |= made
        names[name] = tuple(made)
    studies = {
        key: study.model_copy(update={"graphs": tuple(one for name in study.graphs for one in names[name])})
        for key, study in experiment.studies.items()
    }
    return experiment.model_copy(update={"data": folder, "graphs": graphs, "studies": studies})


def arms_of(experiment: ExperimentOptions, study: StudyOptions) -> tuple[str, ...]:
    """The arms that ``study`` compares."""
    return study.arms or tuple(experiment.arms)


def settings(experiment: ExperimentOptions, study: StudyOptions) -> Iterator[Setting]:
    """Every combination of what ``study`` varies, graph by graph; ``InputError`` where a planted graph cannot be so."""
    axes = [
        [(key, label, changes) for label, changes in values.items()]
        if isinstance(values, dict)
        else [(key, value, {key: value}) for value in values]
        for key, values in study.vary.items()
    ]
    for graph in study.graphs:
        for combination in itertools.product(*axes):
            changes = {key: value for _, _, each in combination for key, value in each.items()}
            made = {key: changes.pop(key) for key in list(changes) if key.startswith(_PLANTED)}
            planted = experiment.graphs[graph].planted
            if planted is not None:
                data = planted.model_dump() | {key.removeprefix(_PLANTED): value for key, value in made.items()}
                planted = validate_options(PlantedOptions, data, source=f"graphs.{graph}")
            at = {key: for_tables(value) for key, value, _ in combination}
            yield Setting(graph, planted, at, changes)


def for_tables(value: Any) -> int | float | str:
    """A key's value as a cell: lists as text."""
    return value if isinstance(value, int | float | str) else str(value)


def configure(
    experiment: ExperimentOptions,
    study: StudyOptions,
    setting: Setting,
    arm: str,
    found: Mapping[str, Any] | None = None,
    source: str = "experiment",
) -> VariantConfig:
    """What ``arm`` trains with in ``setting``: what is varied wins over the arm, and ``found``, chosen by tuning, over
    both; ``InputError`` where a key does not exist or a value does not fit."""
    data = VariantConfig().model_dump(mode="json")
    for changes in (experiment.base, study.changes, experiment.arms[arm], setting.changes, found or {}):
        data = merge(data, dict(changes))
    return validate_options(VariantConfig, data, source=source)


def source_of(graph: GraphOptions, folder: Path) -> Path | None:
    """What to ingest for a graph that is not planted; None for an optional one that is not there."""
    if graph.dataset is not None:
        return dataset_schema(graph.dataset)
    assert graph.source is not None
    path = folder / graph.source.expanduser()
    if path.exists():
        return path
    if graph.optional:
        return None
    raise InputError(f"{path}: no such graph; change graphs.*.source, or set optional to leave it out")
