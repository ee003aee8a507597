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


def test_a_users_own_tables_go_from_ingest_to_report(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Your own graph\n")[2].partition("\n## ")[0]
    (program,) = _blocks(section, "bash")
    said = _run(program, tmp_path)
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
