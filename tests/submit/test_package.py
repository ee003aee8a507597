"""What travels to the cluster: the job's own files, and nothing that is secret, large or made again there."""

import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from optimag_dist.submit import load_job
from optimag_dist.submit.package import STEPS_FILE, write_package
from optimag_dist.types import InputError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    for name in ("a.yaml", "sub/b.sh", ".env", ".git/config", "runs/x/model.pt", "sub/__pycache__/b.pyc", "big.bin"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(name)
    (files / "sub/b.sh").chmod(0o755)
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nsteps: ['train {here}/a.yaml']\nworking_dir: files\nexcludes: ['*.bin']\n")
    return path


def _names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as made:
        return made.namelist()


def test_hidden_excluded_and_made_files_stay_behind(recipe: Path, tmp_path: Path) -> None:
    write_package(load_job(recipe), tmp_path / "a.zip")
    assert _names(tmp_path / "a.zip") == [STEPS_FILE, "a.yaml", "sub/b.sh"]
    with zipfile.ZipFile(tmp_path / "a.zip") as made:
        assert made.getinfo("sub/b.sh").external_attr >> 16 & 0o111
        content = json.loads(made.read(STEPS_FILE))
    assert content == {"directory": str(Path.cwd()), "steps": [["train", "{here}/a.yaml"]]}


def test_the_same_files_make_the_same_archive(recipe: Path, tmp_path: Path) -> None:
    write_package(load_job(recipe), tmp_path / "a.zip")
    os.utime(tmp_path / "files/a.yaml", (1, 1))
    write_package(load_job(recipe), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_without_a_working_dir_nothing_of_the_recipes_folder_travels(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text("name: a\nsteps: [doctor]")
    write_package(load_job(recipe), tmp_path / "a.zip")
    assert _names(tmp_path / "a.zip") == [STEPS_FILE]


def test_the_package_itself_travels_when_asked(recipe: Path, tmp_path: Path) -> None:
    write_package(load_job(recipe, ["ship=true"]), tmp_path / "a.zip")
    names = _names(tmp_path / "a.zip")
    assert "optimag_dist/console.py" in names
    assert "optimag_dist/datasets/openmoji/schema.yaml" in names
    assert not [name for name in names if "__pycache__" in name]


def test_too_large_is_told_with_the_largest_names(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "files/table.csv").write_text("x" * 3_000_000)
    with pytest.raises(InputError, match=r"more than the 1 MiB that Ray takes; largest: table.csv \(2.9 MiB\)"):
        write_package(load_job(recipe), tmp_path / "a.zip", max_bytes=2**20)
    assert not (tmp_path / "a.zip").exists()


def test_links_are_followed_within_the_jobs_own_files(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "files/linked").symlink_to("sub")
    (tmp_path / "files/linked.yaml").symlink_to(tmp_path / "files/a.yaml")
    write_package(load_job(recipe), tmp_path / "a.zip")
    assert _names(tmp_path / "a.zip") == [STEPS_FILE, "a.yaml", "linked/b.sh", "linked.yaml", "sub/b.sh"]
    with zipfile.ZipFile(tmp_path / "a.zip") as made:
        assert made.read("linked/b.sh") == b"sub/b.sh"


def _link(target: str) -> Callable[[Path], None]:
    return lambda place: place.symlink_to(target)


def _socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_link("/etc"), "a link out of the job's own files, to /etc"),
        (_link("../secret.txt"), "a link out of the job's own files"),
        (_link("."), "a link to a folder that it lies in"),
        (_link("../files/sub/.."), "a link to a folder that it lies in"),
        (_link("runs/x"), "a link to runs/x, which is left out"),
        (_link(".env"), "a link to .env, which is left out"),
        (_link("nowhere"), "a link to nothing"),
        (_link("odd"), "a link to nothing"),
        (os.mkfifo, "a socket, a pipe or a device"),
        (_socket, "a socket, a pipe or a device"),
    ],
)
def test_what_cannot_travel_is_told_unless_it_is_excluded(
    make: Callable[[Path], None], words: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").touch()
    monkeypatch.chdir(tmp_path / "files")  # a socket's path must be short
    make(Path("odd"))
    with pytest.raises(InputError, match=rf"files/odd: ({words}).*excludes: \[odd\]"):
        write_package(load_job(recipe), tmp_path / "a.zip")
    write_package(load_job(recipe, ["excludes=['*.bin', odd]"]), tmp_path / "a.zip")
    assert _names(tmp_path / "a.zip") == [STEPS_FILE, "a.yaml", "sub/b.sh"]


def test_a_name_that_is_not_utf8_is_told(recipe: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path / "files") + b"/caf\xe9")).touch()
    with pytest.raises(InputError, match="a name that is not UTF-8"):
        write_package(load_job(recipe), tmp_path / "a.zip")
