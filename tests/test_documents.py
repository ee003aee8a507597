"""The README's and the documents' own words, run as a new user would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def _run(program: str, cwd: Path) -> str:
    """``program`` by bash, with the ``optimag`` of this environment on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _section(title: str) -> str:
    """The commands of one section of the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = _blocks(readme.partition(f"\n## {title}\n")[2].partition("\n## ")[0], "bash")
    return program


@pytest.mark.slow
def test_a_users_own_tables_go_from_ingest_to_report(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = _run(_section("Your own graph"), tmp_path)
    assert "12 nodes" in said
    assert "sage+optimag" in said
    run = tmp_path / "runs/shop"
    table = re.findall(r"^\| (`.*?) \|", readme, flags=re.MULTILINE)
    promised = [name for row in table for name in re.findall(r"[a-z_]+\.(?:html|yaml|parquet|pt|jsonl)", row)]
    assert len(promised) >= 8
    for name in promised:
        assert list(run.rglob(name)), f"the README promises {name}"
    kept = pd.read_parquet(run / "sage+optimag/seed-0/kept_mass.parquet").set_index("id")
    assert kept.loc["A-3"].isna().to_dict() == {"text": False, "facts": True}
    assert "A-3" in (run / "report.html").read_text(encoding="utf-8")
    for table, column in (("embeddings", "embedding"), ("predictions", "label")):
        rows = pd.read_parquet(tmp_path / table)
        assert rows["id"].tolist()[0] == "A-1"
        assert len(rows) == 12
        assert rows[column].notna().all()


@pytest.mark.slow
def test_the_commands_for_large_graphs_run_as_they_read(tmp_path: Path) -> None:
    tables, _, _ = _section("Your own graph").partition("cat > train.yaml")
    changes = "printf 'source,target,op\\nA-1,B-2,insert\\nA-1,B-1,delete\\n' > changes.csv\n"
    large = _section("Large graphs").replace("ppr/KEY", "ppr/$(ls stores/shop/ppr)")
    said = _run(f"{tables}optimag ingest shop.yaml stores/shop\n{changes}{large}", tmp_path)
    assert "edges cut" in said
    assert "checksums" in said


@pytest.mark.slow
def test_the_sweep_runs_as_it_reads(tmp_path: Path) -> None:
    tables, _, _ = _section("Your own graph").partition("optimag ppr stores/shop")
    said = _run(f"{tables}\n{_section('Sweeps')}", tmp_path)
    sweep = tmp_path / "runs/sweep"
    assert str((sweep / "report.html").relative_to(tmp_path)) in said
    assert set(pd.read_parquet(sweep / "trials.parquet")["status"]) == {"finished"}
    _run("optimag train runs/sweep/best/config.yaml", tmp_path)


def test_the_solvers_document_runs_as_it_reads(tmp_path: Path) -> None:
    script = tmp_path / "solve.py"
    script.write_text("\n".join(_blocks((ROOT / "docs/ufgw.md").read_text(encoding="utf-8"), "python")))
    solved, regularised = _run(f"python {script}", tmp_path).splitlines()
    assert solved.startswith("torch.Size([400, 400]) ")
    assert solved.endswith("converged after 10 outer steps")
    assert regularised.startswith("torch.Size([400, 64]) ")


@pytest.mark.slow
def test_the_plain_torch_script_runs(tmp_path: Path) -> None:
    said = _run(f"python {ROOT}/jobs/examples/plain_torch.py", tmp_path)
    accuracies = [float(a) for a in re.findall(r"test accuracy ([0-9.]+)", said)]
    assert accuracies[-1] > 0.5
    assert "kept mass of image" in said
