"""A whole experiment on the test run's Ray, of graphs and fits that take a second."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS, Detection, run_detections
from optimag_dist.experiments.recipe import ExperimentOptions, load_experiment
from optimag_dist.experiments.report import write_experiment_report
from optimag_dist.experiments.run import run_experiment
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError, RunError

# No variant may be called so, an arm may.
PLAIN = "plain, off"
RECIPE: dict[str, Any] = {
    "name": "toy",
    "title": "A toy <experiment>",
    "question": "Does it run?",
    "seeds": [0, 1],
    "graphs": {
        "made": {"planted": {"nodes": 200, "width": 6, "classes": 3, "noise": 0.3, "conflicts": 0.2}},
        "gone": {"source": "gone.npz", "optional": True},
    },
    "base": {
        "sampling": {"targets": 16, "group_size": 64, "fanouts": [3, 3]},
        "task": {"split": {"train": 0.3, "val": 0.3}},
        "model": {"hidden": 16, "embedding": 8, "dropout": 0},
        # As it stands, an arm hardly learns.
        "optim": {"lr": 1e-7},
        "train": {"epochs": 2},
        "workers": {"count": 1, "device": "cpu"},
    },
    "arms": {PLAIN: {"regulariser.weight": 0}, "optimag": {}},
    "studies": {
        "found": {
            "question": "Are conflicts found?",
            "graphs": ["made"],
            "arms": ["optimag"],
            "detect": True,
            "vary": {"regulariser.rho": [0.3, 1.0]},
        },
        "trained": {
            "question": "Does it help?",
            "graphs": ["gone", "made"],
            "compare": {"optimag": PLAIN},
            "tuning": {
                "trials": 2,
                "seeds": [100],
                "space": {"optim.lr": {"loguniform": [0.02, 0.05]}, "sampling.fanouts": {"choice": [[2, 4]]}},
                "arms": {"optimag": {"regulariser.weight": {"uniform": [0.1, 0.2]}}},
            },
        },
    },
}
FOUND, TRAINED = slice(0, 4), slice(4, 8)


@dataclass
class Ended:
    """An experiment that has ended.

    Attributes:
        out: the folder that holds the experiment's.
        said: lines.
    """

    recipe: Path
    out: Path
    said: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.out / "toy"

    @property
    def table(self) -> list[dict[str, Any]]:
        return pq.read_table(self.directory / "results.parquet").to_pylist()

    @property
    def stamps(self) -> dict[Path, int]:
        """When every fit and every detection ended."""
        files = [*self.directory.rglob("seed-*/result.json"), *self.directory.glob("studies/found/*.json")]
        return {file: file.stat().st_mtime_ns for file in files}

    def run(self, *overrides: str) -> Path:
        self.said.clear()
        experiment = load_experiment(self.recipe, list(overrides), quick=False)
        return run_experiment(experiment, self.out, self.recipe.parent, say=self.said.append)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Ended:
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "toy.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    toy = Ended(folder / "toy.yaml", folder / "out")
    assert toy.run() == toy.directory
    assert toy.said == [
        "found: Are conflicts found?",
        "  2 cells of 2 graphs",
        "    1/2 cells",
        "    2/2 cells",
        "trained: Does it help?",
        "  gone: left out, gone.npz is not there",
        "  made: tuning, 2 points for each of 2 cells",
        "  made: 2 cells of 2 seeds",
    ]
    return toy


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _val(fit: Path) -> float:
    return yaml.safe_load((fit / "result.json").read_text())["val/accuracy"]


def test_every_fit_and_detection_is_a_row(ended: Ended) -> None:
    rows = ended.table
    assert [(row["study"], row["arm"], row["at/regulariser.rho"], row["seed"]) for row in rows] == [
        *(("found", "optimag", rho, seed) for rho in (0.3, 1.0) for seed in (0, 1)),
        *(("trained", arm, None, seed) for arm in (PLAIN, "optimag") for seed in (0, 1)),
    ]
    assert {row["graph"] for row in rows} == {"made"}
    areas = {f"auc/{way}{m}" for way in (KEPT, MISMATCH, NEIGHBOURS) for m in ("", "/m1", "/m2")}
    accuracies = {f"{part}/{metric}" for part in ("val", "test") for metric in ("accuracy", "macro_f1")}
    assert set(rows[0]) == {
        *("study", "graph", "arm", "at/regulariser.rho", "seed", "seconds", "epochs", "best_epoch", "decisive"),
        *("tuned/optim.lr", "tuned/sampling.fanouts", "tuned/regulariser.weight"),
        *areas,
        *accuracies,
    }
    for row in rows[FOUND]:
        assert all(0 <= row[key] <= 1 for key in areas)
        assert all(row[key] is None for key in accuracies)
    for row in rows[TRAINED]:
        assert all(0 <= row[key] <= 1 for key in accuracies)
        assert (row["epochs"], row["decisive"]) == (2, "accuracy")
    assert all(row["seconds"] > 0 for row in rows)


def test_every_seed_of_a_detection_is_another_draw_and_ways_without_transport_do_not_see_the_arm(ended: Ended) -> None:
    rows = {(row["at/regulariser.rho"], row["seed"]): row for row in ended.table[FOUND]}
    for key in (f"auc/{MISMATCH}", f"auc/{NEIGHBOURS}"):
        assert rows[0.3, 0][key] == rows[1.0, 0][key]
        assert rows[0.3, 0][key] != rows[0.3, 1][key]
    assert rows[0.3, 0][f"auc/{KEPT}"] != rows[1.0, 0][f"auc/{KEPT}"]
    assert min(row[f"auc/{KEPT}"] for row in rows.values()) > 0.7
    assert sorted(path.name for path in ended.directory.glob("studies/found/*.json")) == ["0000.json", "0001.json"]


def test_only_what_was_trained_with_the_regulariser_has_kept_mass(ended: Ended) -> None:
    for row in ended.table[TRAINED]:
        assert (row[f"auc/{KEPT}"] is None) == (row["arm"] == PLAIN)
        assert row[f"auc/{NEIGHBOURS}"] > 0.5
    kept = [row[f"auc/{KEPT}"] for row in ended.table[TRAINED] if row["arm"] == "optimag"]
    assert kept[0] != kept[1]


def test_every_arm_is_tuned_by_validation_with_the_same_points(ended: Ended) -> None:
    tuning = ended.directory / "studies" / "trained" / "made-01" / "tuning"
    trials = sorted((tuning / "trials").iterdir())
    assert [[fit.name for fit in trial.iterdir() if fit.is_dir()] for trial in trials] == [["seed-100"]] * 4
    rates = [torch.load(trial / "seed-100" / "model.pt")["config"]["optim"]["lr"] for trial in trials]
    # Arm by arm; each as it stands, and then as was drawn for all.
    assert rates[0] == rates[2] == 1e-7
    assert 0.02 <= rates[1] == rates[3] <= 0.05
    for arm, mine in ((PLAIN, trials[:2]), ("optimag", trials[2:])):
        as_it_stands, drawn = (_val(trial / "seed-100") for trial in mine)
        assert drawn > as_it_stands
        for row in ended.table[TRAINED]:
            if row["arm"] == arm:
                assert (row["tuned/optim.lr"], row["tuned/sampling.fanouts"]) == (rates[1], "[2, 4]")
                weight = row["tuned/regulariser.weight"]
                assert weight is None if arm == PLAIN else 0.1 <= weight <= 0.2


def test_what_was_tuned_is_what_is_compared(ended: Ended) -> None:
    comparison = ended.directory / "studies" / "trained" / "made-01" / "comparison" / "trials"
    rows = iter(ended.table[TRAINED])
    for trial in ("000", "001"):
        for seed in (0, 1):
            row = next(rows)
            model = torch.load(comparison / trial / f"seed-{seed}" / "model.pt")
            assert model["config"]["optim"]["lr"] == row["tuned/optim.lr"]
            assert model["config"]["sampling"]["fanouts"] == [2, 4]
            assert model["config"]["regulariser"]["weight"] == (row["tuned/regulariser.weight"] or 0)
            assert model["seed"] == row["seed"] == seed
            assert _val(comparison / trial / f"seed-{seed}") == row["val/accuracy"]


def test_running_it_again_neither_fits_nor_changes_anything(ended: Ended) -> None:
    table, stamps = ended.table, ended.stamps
    assert len(stamps) == 2 + 4 + 4
    ended.run()
    assert ended.table == table
    assert ended.stamps == stamps


def test_a_part_of_it_may_be_asked_for_and_then_all_again(ended: Ended) -> None:
    table, stamps = ended.table, ended.stamps
    ended.run("only=[found]")
    assert [row["study"] for row in ended.table] == ["found"] * 4
    ended.run()
    assert ended.table == table
    assert ended.stamps == stamps


@pytest.mark.parametrize("study", ["studies/found/0001.json", "comparison/trials/001/seed-0/result.json"])
def test_what_is_missing_is_done_again_and_comes_to_the_same(study: str, ended: Ended) -> None:
    table, stamps = ended.table, ended.stamps
    (missing,) = [path for path in stamps if str(path).endswith(study)]
    missing.unlink()
    ended.run()
    assert _timeless(ended.table) == _timeless(table)
    changed = {path for path, stamp in ended.stamps.items() if stamp != stamps[path]}
    assert changed == {missing}


@pytest.mark.parametrize(
    "override",
    ["seeds=[0, 1, 2]", "base.train.epochs=3", "arms.optimag={regulariser.rho: 2}", "studies.trained.question=Why?"],
)
def test_another_recipe_in_the_same_folder_is_refused_and_overwrites_nothing(override: str, ended: Ended) -> None:
    files = {path: path.read_bytes() for path in ended.directory.iterdir() if path.is_file()}
    assert {path.name for path in files} >= {"recipe.yaml", "results.parquet"}
    stamps = ended.stamps
    with pytest.raises(InputError, match="toy: holds the results of another recipe; choose another --out or name="):
        ended.run(override)
    assert {path: path.read_bytes() for path in ended.directory.iterdir() if path.is_file()} == files
    assert ended.stamps == stamps


def test_the_report_is_one_file_with_pictures_of_every_study(ended: Ended) -> None:
    console = Console(record=True, width=160)
    file = write_experiment_report(ended.directory, console)
    assert file == ended.directory / "report.html"
    page = file.read_text(encoding="utf-8")
    for source in re.findall(r'(?:src|srcset|href)="([^"]*)"', page):
        assert source.startswith("data:image/")
    assert "url(" not in page
    assert "<h1>A toy &lt;experiment&gt;</h1>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["found", "trained", "The recipe"]
    found, trained = page.split("<h2>trained</h2>")
    alts = [re.findall(r'<img[^>]* alt="([^"]+)"', part) for part in (found, trained)]
    assert [len(part) for part in alts] == [1, 2]
    rows = ended.table
    first = np.mean([row[f"auc/{KEPT}"] for row in rows[:2]])
    assert f"made, kept mass: optimag: 0.3: {first:.3f} ±" in alts[0][0]
    gap = 100 * np.mean([rows[6 + seed]["test/accuracy"] - rows[4 + seed]["test/accuracy"] for seed in (0, 1)])
    assert f"made, optimag: {gap:+.2f} ±".replace("-", "−") in alts[1][0]
    assert "comparisons show no difference" in trained
    assert re.search(r"lr=0\.0[2-5]\d* +fanouts=\[2, 4\] +weight=0\.[12]", trained)
    assert "loguniform" in page[page.index("The recipe") :]

    tables = (ended.directory / "tables.md").read_text(encoding="utf-8")
    assert re.search(rf"\| made \| optimag \| 0\.3 \| {first:.3f} ± \d\.\d+ \|", tables)
    assert re.search(rf"\| made \| {PLAIN} \| +\d+\.\d ± \d+\.\d \|  \|", tables)

    shown = console.export_text()
    assert "1 comparisons show no difference" in shown
    assert re.search(rf"made +{PLAIN} +\d+\.\d ± ", shown)
    assert re.search(rf"made +optimag +0\.3 +{first:.3f} ", shown)


def test_without_an_experiment_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no experiment here \(recipe.yaml, results.parquet\)"):
        write_experiment_report(tmp_path)


def test_a_graph_that_has_to_be_there_is_missed_and_one_study_without_graphs_is_told(tmp_path: Path) -> None:
    data = {**RECIPE, "only": ["trained"]}
    data["studies"] = {"trained": {**RECIPE["studies"]["trained"], "graphs": ["gone"]}}
    experiment = ExperimentOptions.model_validate(data)
    said: list[str] = []
    directory = run_experiment(experiment, tmp_path, tmp_path, say=said.append)
    assert said[-1] == "  gone: left out, gone.npz is not there"
    page = write_experiment_report(directory).read_text(encoding="utf-8")
    assert "No results yet, or its graphs are not there." in page

    data["graphs"] = {**RECIPE["graphs"], "gone": {"source": "gone.npz"}}
    with pytest.raises(InputError, match=r"gone.npz: no such graph"):
        run_experiment(
            ExperimentOptions.model_validate({**data, "name": "needed"}), tmp_path, tmp_path, say=said.append
        )


def test_what_no_sweep_can_do_is_told_in_words(ended: Ended, tmp_path: Path) -> None:
    study = {"question": "?", "graphs": ["made"], "arms": ["optimag"], "vary": {"workers.count": [1, 2]}}
    experiment = ExperimentOptions.model_validate({**RECIPE, "studies": {"trained": study}})
    with pytest.raises(InputError, match="variants share one group of workers"):
        run_experiment(experiment, tmp_path, tmp_path, say=ended.said.append)


def test_a_detection_that_fails_is_told_and_the_others_are_kept(ended: Ended, tmp_path: Path) -> None:
    store = next(ended.directory.glob("graphs/planted-*/store"))
    prior = next((store / "ppr").glob("*"))
    config = VariantConfig()
    asked = [
        Detection((store,), (prior,), config, (0,)),
        Detection((tmp_path / "nowhere",), (prior,), config, (0,)),
    ]
    with pytest.raises(RunError, match=r"1 of 2 detections failed, the first one with: .*nowhere"):
        run_detections(asked, tmp_path / "out", say=print)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["0000.json"]
