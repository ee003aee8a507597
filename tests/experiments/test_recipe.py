"""Recipes of experiments: what they are read as, what takes precedence, and how they say no."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimag_dist.experiments.recipe import (
    ExperimentOptions,
    GraphOptions,
    arms_of,
    configure,
    datasets_in,
    find_recipe,
    load_experiment,
    settings,
    source_of,
)
from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.types import InputError

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "experiments").glob("*.yaml"))


def _data(**study: Any) -> dict[str, Any]:
    """A recipe with one study, ``asked``, of which ``study`` are keys."""
    return {
        "name": "toy",
        "title": "Toy",
        "question": "Does it?",
        "seeds": [0, 1],
        "graphs": {"real": {"dataset": "openmoji"}, "made": {"planted": {"nodes": 100}}},
        "arms": {"plain": {"regulariser.weight": 0}, "optimag": {}},
        "studies": {"asked": {"question": "Which?", "graphs": ["made"], **study}},
    }


def _written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def _load(folder: Path, data: dict[str, Any], *overrides: str, quick: bool = False) -> ExperimentOptions:
    return load_experiment(_written(folder, data), list(overrides), quick=quick)


def _experiment(**study: Any) -> ExperimentOptions:
    return validate_options(ExperimentOptions, _data(**study), "toy.yaml")


# -- those that come with the project ----------------------------------------------------------------------------------


def _mm_graph(folder: Path) -> None:
    """By its file alone a folder is known."""
    folder.mkdir(parents=True)
    (folder / "nc_edges-nodeid.pt").touch()


def test_datasets_take_the_place_of_graphs_in_data(tmp_path: Path) -> None:
    for name in ("Movies", "mm-graph/books", "none"):
        (tmp_path / name).mkdir(parents=True)
    _mm_graph(tmp_path / "mm-graph" / "sports")
    _mm_graph(tmp_path / "Toys")
    experiment = load_experiment(find_recipe("paper"), [f"data={tmp_path}"], quick=False)
    assert experiment.studies["node_classification"].graphs == ("Toys", "mm-graph-sports")
    assert experiment.studies["link_prediction"].graphs == ("Toys-links", "mm-graph-sports-links")
    assert experiment.graphs["Toys-links"].source == tmp_path / "Toys"
    assert [path.name for path in datasets_in(tmp_path)[1]] == ["Movies", "none"]
    assert list(datasets_in(tmp_path / "Toys")[0]) == ["Toys"]


@pytest.mark.parametrize(
    ("overrides", "words"), [([], "needs data=DIR"), (["data=none"], "no such folder"), (["data=."], "MAGB, OpenMAG:")]
)
def test_without_a_dataset_it_is_said_what_is_looked_for(
    overrides: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        load_experiment(find_recipe("paper"), overrides, quick=False)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_is_read_back_as_it_was_written(path: Path, quick: bool, tmp_path: Path) -> None:
    _mm_graph(tmp_path / "data" / "Toy")
    overrides = [f"data={tmp_path / 'data'}"] if path.stem == "paper" else []
    experiment = load_experiment(path, overrides, quick=quick)
    assert experiment.name == path.stem
    assert find_recipe(path.stem).resolve() == path.resolve()
    # Otherwise the same command would not go on with its own results.
    dump_options(experiment, tmp_path / "recipe.yaml")
    assert load_options(ExperimentOptions, tmp_path / "recipe.yaml") == experiment
    whole = load_experiment(path, overrides, quick=False)
    assert (experiment != whole) == quick
    assert len(experiment.seeds) <= len(whole.seeds)
    assert set(experiment.asked) == set(experiment.only or experiment.studies)


def test_there_are_recipes() -> None:
    assert [path.stem for path in RECIPES] == ["ablation", "conflicts", "defaults", "paper", "sweep", "tasks"]


def test_infinity_stays_what_it_is(tmp_path: Path) -> None:
    data = _data(vary={"regulariser.rho": [0.1, math.inf]})
    data["arms"]["balanced"] = {"regulariser.rho": math.inf}
    experiment = _load(tmp_path, data)
    dump_options(experiment, tmp_path / "again.yaml")
    again = load_options(ExperimentOptions, tmp_path / "again.yaml")
    assert again == experiment
    assert again.arms["balanced"] == {"regulariser.rho": math.inf}
    last = list(settings(again, again.studies["asked"]))[-1]
    assert last.at == {"regulariser.rho": math.inf}
    assert configure(again, again.studies["asked"], last, "plain").regulariser.rho == math.inf


# -- how recipes say no ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sedes=[1]"], r"unknown key 'sedes'; did you mean 'seeds'\?"),
        (["studies.asked.graph=[made]"], r"unknown key 'studies.asked.graph'; did you mean 'studies.asked.graphs'"),
        (["graphs.made.planted.noodles=3"], "unknown key 'graphs.made.planted.noodles'"),
        (["studies.asked.graphs=[maid]"], "studies.asked: no graph is called 'maid'; there are real, made"),
        (["studies.asked.arms=[plane]"], "studies.asked: no arm is called 'plane'; there are plain, optimag"),
        (["studies.asked.compare={optimag: of}"], "studies.asked: no arm is called 'of'; there are plain, optimag"),
        # One that the experiment has, and this study leaves out.
        (
            ["studies.asked.arms=[optimag]", "studies.asked.compare={optimag: plain}"],
            "studies.asked: no arm is called 'plain'; there are optimag",
        ),
        (["studies.asked.tuning={arms: {of: {}}}"], "studies.asked: no arm is called 'of'; there are plain, optimag"),
        (["only=[answered]"], "only: no study is called 'answered'; there are asked"),
        (
            ["graphs.real.planted={}"],
            r"needed exactly one of dataset, source, planted and in_data, got \['dataset', 'planted'\]",
        ),
        (["graphs.real={}"], "needed exactly one of dataset, source, planted and in_data, got none of them"),
        (["graphs.made.planted.homophily=2"], "key 'graphs.made.planted.homophily'.*less than or equal to 1"),
        (["studies.asked.tuning={space: {optim.lr: {normal: [0, 1]}}}"], "unknown distribution 'normal'"),
        (["seeds=[]"], "key 'seeds'"),
        (["name=../elsewhere"], "key 'name'"),
        (["studies=5"], "key 'studies'"),
        (["title"], "needed key=value"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as refused:
        _load(tmp_path, _data(), *overrides)
    assert "toy.yaml" in str(refused.value) or "override" in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["base={train: {epochs: 0}}"], "studies.asked, arm plain: key 'train.epochs'.*greater than or equal to 1"),
        (["base={trian.epochs: 2}"], r"studies.asked, arm plain: unknown key 'trian'; did you mean 'train'"),
        (["arms.optimag={regulariser.alpha: 2}"], "studies.asked, arm optimag: key 'regulariser.alpha'.*got 2"),
        (["arms.optimag={planted.nodes: 5}"], "studies.asked, arm optimag: unknown key 'planted'"),
        (["studies.asked.changes={optim.lr: fast}"], "studies.asked, arm plain: key 'optim.lr'.*got 'fast'"),
        (["studies.asked.vary={model.backbone: [sage, sag]}"], "studies.asked, arm plain: key 'model.backbone'"),
        (["studies.asked.vary={size: {big: {train.epoch: 9}}}"], "asked, arm plain: .*did you mean 'train.epochs'"),
        (["studies.asked.vary={planted.noise: [0.5, -1]}"], r"graphs.made: key 'noise'.*got -1"),
        (["studies.asked.vary={planted.nose: [0.5]}"], r"graphs.made: unknown key 'nose'; did you mean 'noise'"),
        (["base={regulariser: 5}"], "studies.asked, arm optimag: key 'regulariser'.*got 5"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_study_and_arm(
    overrides: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        _load(tmp_path, _data(), *overrides)


def test_only_what_is_asked_has_to_fit(tmp_path: Path) -> None:
    data = _data()
    data["studies"]["broken"] = {"question": "?", "graphs": ["made"], "changes": {"train.epochs": 0}}
    assert list(_load(tmp_path, data, "only=[asked]").asked) == ["asked"]
    with pytest.raises(InputError, match=r"studies\.broken, arm plain"):
        _load(tmp_path, data)


@pytest.mark.parametrize(
    "study",
    [
        {"vary": {"planted.noise": [0.5]}},
        {"vary": {"size": {"small": {"planted.nodes": 50}}}},
        {"detect": True},
    ],
)
def test_only_planted_graphs_have_known_conflicts(study: dict[str, Any], tmp_path: Path) -> None:
    data = _data(**study)
    _load(tmp_path, data)
    data["studies"]["asked"]["graphs"] = ["made", "real"]
    with pytest.raises(InputError, match=r"studies\.asked: 'real' is not planted, so its conflicts are not known"):
        _load(tmp_path, data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "toy.yaml: no such file; needed a YAML file for ExperimentOptions"),
        ("a: [", "toy.yaml: not valid YAML"),
        ("- a", "toy.yaml: needed a mapping of keys to values, got list"),
        ("", "toy.yaml: key 'name' is missing and has no default"),
        ("name: toy", "toy.yaml: key 'title' is missing and has no default"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_experiment(path, [], quick=False)


# -- quick, overrides, and who wins ------------------------------------------------------------------------------------


def test_quick_takes_the_place_of_whole_values_and_leaves_the_others(tmp_path: Path) -> None:
    data = _data(vary={"planted.noise": [0.1, 0.2, 0.3], "planted.degree": [2, 4]}, seeds=[5, 6])
    data["base"] = {"train": {"epochs": 50, "patience": 7}}
    data["quick"] = {
        "seeds": [0],
        "studies.asked.vary": {"planted.noise": [0.1]},
        "base.train.epochs": 2,
        "arms.optimag": {"regulariser.rho": 3},
    }
    whole, quick = _load(tmp_path, data), _load(tmp_path, data, quick=True)
    assert whole.seeds == (0, 1)
    assert list(whole.studies["asked"].vary) == ["planted.noise", "planted.degree"]
    assert quick.seeds == (0,)
    # The value as a whole: what it does not name is gone, and the dots in its keys are theirs.
    assert quick.studies["asked"].vary == {"planted.noise": (0.1,)}
    assert quick.studies["asked"].seeds == (5, 6)
    assert quick.base == {"train": {"epochs": 2, "patience": 7}}
    assert quick.arms == {"plain": {"regulariser.weight": 0}, "optimag": {"regulariser.rho": 3}}


def test_overrides_come_after_quick(tmp_path: Path) -> None:
    data = {**_data(), "quick": {"seeds": [0], "title": "Quick"}}
    quick = _load(tmp_path, data, "seeds=[7, 8]", "base.train.epochs=3", quick=True)
    assert (quick.seeds, quick.title, quick.base) == ((7, 8), "Quick", {"train": {"epochs": 3}})
    whole = _load(tmp_path, data, "studies.asked.arms=[plain]")
    assert (whole.seeds, whole.title, arms_of(whole, whole.studies["asked"])) == ((0, 1), "Toy", ("plain",))


@pytest.mark.parametrize(
    ("quick", "words"),
    [
        ({"studies.other.seeds": [0]}, "key 'studies.other.question' is missing"),
        ({"sedes": [0]}, "unknown key 'sedes'"),
        ({"title.of": [0]}, "key 'title': .*valid string"),
        ([1], "key 'quick'"),
    ],
)
def test_a_quick_that_does_not_fit_is_refused(quick: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        _load(tmp_path, {**_data(), "quick": quick}, quick=True)


def test_later_changes_win_over_earlier_ones() -> None:
    data = _data(changes={"optim.lr": 0.2, "optim.weight_decay": 0.2, "model.dropout": 0.2, "train.epochs": 20})
    data["studies"]["asked"]["vary"] = {"optim.weight_decay": [0.3], "of both": {"x": {"model.dropout": 0.3}}}
    data["base"] = {
        "optim": {"lr": 0.1, "weight_decay": 0.1},
        "train": {"epochs": 10, "patience": 4},
        "model": {"dropout": 0.1},
    }
    data["arms"]["optimag"] = {"model": {"dropout": 0.4}, "train.epochs": 40}
    experiment = validate_options(ExperimentOptions, data, "toy.yaml")
    study = experiment.studies["asked"]
    (setting,) = settings(experiment, study)
    arm = configure(experiment, study, setting, "optimag")
    # In turn: the base, the study, the arm, and what is varied, which would not be varied if an arm had the last word.
    assert (arm.train.patience, arm.optim.lr, arm.optim.weight_decay, arm.model.dropout) == (4, 0.2, 0.3, 0.3)
    assert arm.train.epochs == 40
    found = configure(experiment, study, setting, "optimag", {"train.epochs": 50, "model.hidden": 7})
    assert (found.train.epochs, found.model.hidden, found.model.dropout) == (50, 7, 0.3)
    plain = configure(experiment, study, setting, "plain")
    assert (plain.train.epochs, plain.model.dropout, plain.regulariser.weight) == (20, 0.3, 0)


# -- what a study varies -----------------------------------------------------------------------------------------------


def test_nothing_varied_is_one_setting_per_graph() -> None:
    experiment = _experiment(graphs=["made", "real"])
    made, real = settings(experiment, experiment.studies["asked"])
    assert (made.graph, made.at, made.changes) == ("made", {}, {})
    assert made.planted == experiment.graphs["made"].planted
    assert (real.graph, real.planted) == ("real", None)


def test_keys_of_the_run_are_varied_by_their_values() -> None:
    experiment = _experiment(vary={"sampling.fanouts": [[5, 5], [9, 9]]})
    first, second = settings(experiment, experiment.studies["asked"])
    assert first.changes == {"sampling.fanouts": [5, 5]}
    # A list has no place in a table.
    assert second.at == {"sampling.fanouts": "[9, 9]"}
    assert configure(experiment, experiment.studies["asked"], second, "plain").sampling.fanouts == (9, 9)


def test_labels_stand_for_several_changes_at_once() -> None:
    labelled = {
        "small": {"sampling.group_size": 32, "sampling.targets": 4, "planted.nodes": 50},
        "as it is": {},
    }
    experiment = _experiment(vary={"size": labelled})
    small, as_it_is = settings(experiment, experiment.studies["asked"])
    assert [small.at, as_it_is.at] == [{"size": "small"}, {"size": "as it is"}]
    assert small.changes == {"sampling.group_size": 32, "sampling.targets": 4}
    assert small.planted is not None
    assert as_it_is.planted is not None
    assert (small.planted.nodes, as_it_is.planted.nodes) == (50, 100)
    assert as_it_is.changes == {}


def test_keys_of_a_planted_graph_change_the_graph_and_not_the_run() -> None:
    experiment = _experiment(vary={"planted.conflicts": [0.1, [0.2, 0.4]], "planted.noise": [2]})
    one, per_modality = settings(experiment, experiment.studies["asked"])
    assert one.planted is not None
    assert per_modality.planted is not None
    assert (one.planted.conflicts, one.planted.noise, one.planted.nodes) == (0.1, 2, 100)
    assert per_modality.planted.conflicts == (0.2, 0.4)
    assert per_modality.at == {"planted.conflicts": "[0.2, 0.4]", "planted.noise": 2}
    assert one.changes == per_modality.changes == {}


def test_two_axes_give_every_combination_on_every_graph() -> None:
    data = _data(vary={"regulariser.alpha": [0.3, 0.6], "which": {"a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.2}}})
    data["studies"]["asked"]["graphs"] = ["real", "made"]
    experiment = validate_options(ExperimentOptions, data, "toy.yaml")
    found = list(settings(experiment, experiment.studies["asked"]))
    assert [(s.graph, s.at["regulariser.alpha"], s.at["which"]) for s in found] == [
        (graph, alpha, which) for graph in ("real", "made") for alpha in (0.3, 0.6) for which in ("a", "b")
    ]
    assert found[1].changes == {"regulariser.alpha": 0.3, "optim.lr": 0.2}


# -- where recipes and graphs lie --------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_name_here_first_then_in_the_checkout_or_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("conflicts").resolve() == next(path for path in RECIPES if path.stem == "conflicts")
    mine = tmp_path / "jobs" / "experiments" / "conflicts.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("name: mine")
    mine.with_name("other.yaml").write_text("name: other")
    assert find_recipe("conflicts").resolve() == mine
    assert find_recipe("elsewhere/conflicts.yml") == Path("elsewhere/conflicts.yml")
    with pytest.raises(
        InputError, match=r"no experiment is called 'conflict'; there are ablation, conflicts, defaults, other"
    ):
        find_recipe("conflict")


def test_a_graph_starts_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "graph.npz").touch()
    assert source_of(GraphOptions(source=Path("graph.npz")), tmp_path) == tmp_path / "graph.npz"
    assert source_of(GraphOptions(source=tmp_path / "graph.npz"), Path("nowhere")) == tmp_path / "graph.npz"
    shipped = source_of(GraphOptions(dataset="openmoji"), tmp_path)
    assert shipped is not None
    assert shipped.is_file()


def test_a_missing_graph_is_left_out_only_where_it_is_optional(tmp_path: Path) -> None:
    assert source_of(GraphOptions(source=Path("no.npz"), optional=True), tmp_path) is None
    with pytest.raises(InputError, match=r"no.npz: no such graph; .* set optional to leave it out"):
        source_of(GraphOptions(source=Path("no.npz")), tmp_path)
    with pytest.raises(InputError, match="unknown dataset 'openmojis'; did you mean 'openmoji'"):
        source_of(GraphOptions(dataset="openmojis", optional=True), tmp_path)
