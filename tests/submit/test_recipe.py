"""Recipes: what fills their steps, what they refuse, and that those in jobs/ mean something to this ``optimag``."""

from pathlib import Path

import pytest
from typer.main import get_command

from optimag_dist.cli import app
from optimag_dist.cli.submit import check_command
from optimag_dist.options import load_options
from optimag_dist.submit import load_job
from optimag_dist.train.options import RunConfig
from optimag_dist.types import InputError

OPTIMAG = get_command(app)
JOBS = Path(__file__).parents[2] / "jobs"
FILES = [*JOBS.glob("*.yaml"), *JOBS.glob("tasks/*.yaml")]
RECIPES = sorted(path for path in FILES if "steps:" in path.read_text(encoding="utf-8"))

RECIPE = """
name: shop
parameters: {store: stores/shop, k: 8, verbose: true}
steps:
  - ingest '{here}/my shop.yaml' {store}
  - train c.yaml name={name} store={store} ppr.k={k} verbose={verbose} {overrides}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(RECIPE)
    return path


def test_the_recipes_that_come_with_the_package_are_these() -> None:
    commands = [path.stem for path in RECIPES if path.parent == JOBS]
    assert commands == ["demo", "embed", "encode", "evaluate", "ingest", "ppr", "train", "tune"]
    tasks = [path.stem for path in RECIPES if path.parent != JOBS]
    kinds = ["graph2image", "graph2text", "link_prediction", "modality_retrieval", "node_classification", "several"]
    assert tasks == kinds


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_step_is_a_command_that_this_optimag_takes(path: Path) -> None:
    job = load_job(path)
    for step in job.steps:
        check_command(OPTIMAG, step)
    if "{here}" in path.read_text(encoding="utf-8"):
        assert job.files == (JOBS if path.parent == JOBS else path.parent / "configs")


@pytest.mark.parametrize("path", sorted(JOBS.glob("tasks/configs/*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_tasks_are_valid_and_of_their_kind(path: Path) -> None:
    config = load_options(RunConfig, path)
    assert config.task.kind == path.stem
    assert {variant.regularised for variant in config.resolve().values()} == {True, False}


def test_parameters_fill_the_steps_and_the_rest_goes_to_the_step_that_takes_it(recipe: Path) -> None:
    job = load_job(recipe, ["store=my stores/a", "name=other", "train.epochs=5", "entrypoint.num_cpus=0.5", "k=16"])
    assert job.steps == (
        ("ingest", "{here}/my shop.yaml", "my stores/a"),
        ("train", "c.yaml", "name=other", "store=my stores/a", "ppr.k=16", "verbose=true", "train.epochs=5"),
    )
    assert job.recipe.entrypoint.num_cpus == 0.5
    assert job.directory == Path.cwd()


def test_the_steps_run_where_the_recipe_says(recipe: Path) -> None:
    assert load_job(recipe, ["directory=/shared/x"]).directory == Path("/shared/x")
    assert load_job(recipe, ["directory=sub"]).directory == Path.cwd() / "sub"


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("name: a\nsteps: ['train {stor}']", [], "{stor} is none of the parameters"),
        ("name: a\nparameters: {store: s}\nsteps: ['ppr {store}']", ["stor=t"], "did you mean 'store'"),
        ("name: a\nsteps: ['train x={overrides}']", [], "set blanks around it"),
        ("name: a\nsteps: []", [], "steps"),
        ("name: a b\nsteps: [doctor]", [], "name"),
        ("name: a\nparameters: {here: x}\nsteps: [doctor]", [], "a meaning of their own"),
        ("name: a\nworking_dir: nowhere\nsteps: [doctor]", [], "is no folder"),
        ('name: a\nsteps: ["ppr \'x"]', [], "No closing quotation"),
        ("name: a\nsteps: [ppr s]\nentrypoint: {num_cpu: 1}", [], "did you mean 'entrypoint.num_cpus'"),
    ],
)
def test_what_cannot_be_run_is_told(tmp_path: Path, text: str, changes: list[str], words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as told:
        load_job(path, changes)
    assert words in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    "secret",
    [
        "runtime_env: {env_vars: {AWS_SECRET_ACCESS_KEY: hunter2}}",
        "runtime_env: {env_vars: {wandb_api_key: hunter2}}",
        "metadata: {password: hunter2}",
        "parameters: {db-token: hunter2}",
    ],
)
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"name: a\nsteps: [doctor]\n{secret}")
    with pytest.raises(InputError, match="looks like a secret") as told:
        load_job(path)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    "address", ["s3://me:hunter2@bucket/x", "s3://me:hun?ter2@bucket/x", "s3://bucket/x?secret_key=hunter2&region=eu"]
)
def test_an_address_with_a_password_is_refused(recipe: Path, address: str) -> None:
    with pytest.raises(InputError, match="an address in a step") as told:
        load_job(recipe, [f"store={address}"])
    assert "hunter2" not in str(told.value)


def test_variables_that_only_look_alike_are_let_through(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nsteps: [doctor]\nruntime_env: {env_vars: {TOKENIZERS_PARALLELISM: 'true', MONKEY: x}}")
    assert load_job(path).recipe.runtime_env.env_vars["MONKEY"] == "x"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (("trian", "x"), "needed one of"),
        (("train",), "config"),
        (("train", "a.yaml", "--rseume"), "--rseume"),
        (("data",), "after 'optimag data'"),
        (("submit", "job.yaml"), "needed one of"),
    ],
)
def test_a_step_that_is_no_command_is_told_before_anything_runs(step: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError) as told:
        check_command(OPTIMAG, step)
    assert words in str(told.value)


def test_commands_by_default_are_found(tmp_path: Path) -> None:
    check_command(OPTIMAG, ("ppr", "stores/x", "k=3"))
    check_command(OPTIMAG, ("ppr", "inspect", "stores/x/ppr/KEY"))
