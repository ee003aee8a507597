"""What one file of the user's adds: each example of the document serves, and each mistake is named."""

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from optimag_dist.options import dump_options, load_options, validate_options
from optimag_dist.store import GraphStore, ingest
from optimag_dist.tasks import metric_of
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.log import read_records
from optimag_dist.train.options import RunConfig, fingerprint
from optimag_dist.train.validation import check_input
from optimag_dist.types import InputError

from .tasks.tiny_stores import make_ppr, quietly

DOCUMENT = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
PROGRAMS = {
    name: program
    for name, program in re.findall(
        r"`(my_\w+\.py)`:\n\n```python\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE
    )
}
SECTIONS = [
    yaml.safe_load(section) for section in re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
]
TASK, REGULARISER = SECTIONS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the document's files."""
    monkeypatch.chdir(tmp_path)
    for name, program in PROGRAMS.items():
        (tmp_path / name).write_text(program)
    return tmp_path


def _config(recipe: dict[str, Any], **sections: Any) -> RunConfig:
    recipe = {**recipe, **sections, "train": {**recipe["train"], "epochs": 3}}
    return validate_options(RunConfig, recipe, "recipe")


def test_a_task_and_its_metric_are_one_file(here: Path, recipe: dict, planted_store: GraphStore) -> None:
    config = _config(recipe, **TASK, regulariser={"weight": 0})
    variant = config.resolve()["default"]
    check_input(planted_store, variant, 0)
    result = run_fit(Fit("default", 0, variant, here / "fit"), planted_store, None, Worker())
    assert result["decisive"] == "log_degree_error"
    # Less is better, which early stopping went by.
    errors = [record["val/log_degree_error"] for record in read_records(here / "fit/metrics.jsonl")]
    assert result["val/log_degree_error"] == min(errors) < errors[0]
    metric = metric_of("test/log_degree_error")
    assert (metric.title, metric.sign) == ("error of log degree", -1)


def test_a_users_section_is_kept_as_one_of_ours(here: Path, recipe: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config, other = _config(recipe, **TASK, **REGULARISER), _config(recipe, **TASK)
    assert config.task.kind == f"{here}/my_task.py:Degree"
    assert config.task.offset == 0.5
    assert config.regulariser.model_dump() == {
        "kind": f"{here}/my_regulariser.py:Smooth",
        "weight": None,
        "share": 0.5,
        "warm_up": 5,
        "power": 2.0,
    }
    dump_options(config, here / "config.yaml")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    again = load_options(RunConfig, here / "config.yaml")
    assert again == config
    one, two = config.resolve()["default"], other.resolve()["default"]
    assert fingerprint(one, 0) == fingerprint(again.resolve()["default"], 0) != fingerprint(two, 0)
    # A worker has not loaded the file before the configuration comes.
    (here / "fit.pkl").write_bytes(pickle.dumps(one))
    program = f"import pickle; print(pickle.load(open({str(here / 'fit.pkl')!r}, 'rb')).task.offset)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0.5\n"


def test_a_regulariser_needs_no_diagnostics(
    here: Path, recipe: dict, planted_store: GraphStore, tmp_path: Path
) -> None:
    ppr = make_ppr(planted_store, tmp_path / "ppr")
    # A given weight stands from the first step on.
    given = {"regulariser": {**REGULARISER["regulariser"], "weight": 0.5}}
    variant = _config(recipe, **given).resolve()["default"]
    check_input(planted_store, variant, 0)
    run_fit(Fit("default", 0, variant, here / "fit"), planted_store, ppr, Worker())
    first, *_, last = read_records(here / "fit/metrics.jsonl")
    assert 0 < last["alignment"] < first["alignment"]
    assert not [name for name in last if name.startswith(("kept_mass", "transport"))]
    assert not (here / "fit/kept_mass.parquet").exists()
    # With diagnostics the kept mass is exported.
    told = "\n    def diagnostics(self):\n        return SimpleNamespace(kept_mass=self.kept)\n"
    program = PROGRAMS["my_regulariser.py"].replace(
        "        value = 0.0\n", "        value, self.kept = 0.0, {m: mask.float() for m, mask in present.items()}\n"
    )
    (here / "told.py").write_text(f"from types import SimpleNamespace\n{program}{told}")
    variant = _config(recipe, regulariser={"kind": "told.py:Smooth", "power": 1.0}).resolve()["default"]
    run_fit(Fit("default", 0, variant, here / "told"), planted_store, ppr, Worker())
    assert (here / "told/kept_mass.parquet").exists()
    assert read_records(here / "told/metrics.jsonl")[0]["kept_mass/text"] == 1


def test_an_importer_is_one_function(here: Path) -> None:
    matrix = np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
    np.savetxt(here / "matrix.txt", matrix, fmt="%d")
    (command,) = re.findall(r"^optimag ingest (\S+) STORE (\S+)$", DOCUMENT, flags=re.MULTILINE)
    store = ingest(command[0], here / "store", [command[1]], say=quietly)
    assert store.num_nodes == 4
    assert store.topology.indices.tolist() == matrix.nonzero()[1].tolist()
    assert store.gather("row", np.arange(4)).tolist() == matrix.tolist()
    # One of ours can be named, too.
    np.savez(here / "graph.data.npz", edges=np.argwhere(matrix), x_row=matrix.astype(np.float32))
    (here / "graph.data.npz").rename(here / "graph.data")
    same = ingest("graph.data", here / "same", ["importer=npz", "name=matrix"], say=quietly)
    assert same.content_hash == store.content_hash


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": {"kind": "my_task.py:Degre"}}, r"key 'task': .*has no 'Degre'; did you mean 'Degree'\?"),
        ({"task": {"kind": "absent.py:Degree"}}, r"key 'task': 'absent.py:Degree': no file .*/absent.py"),
        ({"task": {"kind": "my_task.py:DegreeHead"}}, r"key 'task': .*needed a subclass of optimag_dist.*Task; got"),
        ({"task": {"kind": "unmeasured.py:Degree"}}, r"do not say how to read 'log_degree_error'"),
        ({"task": {"kind": "lacking.py:Degree"}}, r"'lacking.py:Degree': lacks examples, which every task has"),
        ({"task": {"kind": "other.py:Degree"}}, r"cannot be imported .*another task has declared the metric .*rename"),
        ({"task": {"kind": "my_task.py:Degree", "ofset": 1}}, r"unknown key 'task.ofset'; did you mean 'task.offset'"),
        ({"task": {"kind": "my_task.py:Degree", "offset": "x"}}, r"key 'task.offset': .*valid number.*got 'x'"),
        (
            {"regulariser": {"kind": "smooth"}},
            r"key 'regulariser': .*unknown 'smooth'; known: robust, local, ufgw, or your",
        ),
        ({"regulariser": {"kind": "my_regulariser.py:Smooth", "weight": -1}}, r"'regulariser.weight': .*greater"),
        (
            {"regulariser": {"kind": "my_regulariser.py:Smooth", "rho": 1}},
            r"unknown key 'regulariser.rho'; .*known here: kind, power, share, warm_up, weight",
        ),
        ({"regulariser": {"kind": "my_regulariser.py:SmoothOptions"}}, r"needed a subclass of torch.nn.*Module"),
    ],
)
def test_what_does_not_serve_is_named(here: Path, recipe: dict, sections: dict[str, Any], message: str) -> None:
    task = PROGRAMS["my_task.py"]
    (here / "unmeasured.py").write_text(task.replace('(Metric("log_degree_error"', '(Metric("unread"'))
    (here / "lacking.py").write_text(task.replace("def examples", "def example"))
    (here / "other.py").write_text(task.replace("error of log degree", "something else"))
    _config(recipe, **TASK)
    with pytest.raises(InputError, match=message):
        _config(recipe, **sections)


def test_a_regulariser_that_does_not_take_its_own_options_is_named(
    here: Path, recipe: dict, planted_store: GraphStore
) -> None:
    (here / "mine.py").write_text(PROGRAMS["my_regulariser.py"].replace("self, weight, power", "self, weight, scale"))
    config = _config(recipe, regulariser={"kind": "mine.py:Smooth"})
    with pytest.raises(
        InputError, match=r"regulariser.kind=.*mine.py:Smooth: cannot be made from \{'weight': 1.0, 'po"
    ):
        check_input(planted_store, config.resolve()["default"], 0)


@pytest.mark.parametrize(
    ("importer", "message"),
    [
        ("npzz", r"importer: unknown 'npzz'; did you mean 'npz'\? known: ogb, .*, or your own as package.module"),
        ("my_importer.py:open_adjacenci", r"has no 'open_adjacenci'"),
        ("nothing.py:nothing", r"importer=.*nothing.py:nothing: needed a GraphSource .*got NoneType"),
    ],
)
def test_an_importer_that_does_not_serve_is_named(here: Path, importer: str, message: str) -> None:
    (here / "nothing.py").write_text("def nothing(path, options): pass")
    (here / "matrix.txt").write_text("0 1\n1 0\n")
    with pytest.raises(InputError, match=message):
        ingest("matrix.txt", here / "store", [f"importer={importer}"], say=quietly)
    assert not (here / "store").exists()
