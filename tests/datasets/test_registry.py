import pyarrow.parquet as pq
import pytest
import yaml

from optimag_dist.datasets import copy_dataset, dataset_schema, list_datasets, registry
from optimag_dist.types import InputError


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_list_says_what_the_files_say():
    (info,) = list_datasets()
    assert info.name == yaml.safe_load(dataset_schema("openmoji").read_text())["name"]
    assert (info.nodes, info.edges, dict(info.modalities)) == (2456, 18966, {"text": 384, "image": 1280})
    assert len(info.classes) == 11
    assert "flags" in info.classes
    assert info.licence in dataset_schema("openmoji").with_name("ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "17.0.0" in info.source
    assert info.description


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(InputError, match=r"'OpenMojy'; did you mean 'openmoji'\? shipped: openmoji"):
        dataset_schema("OpenMojy")
    with pytest.raises(InputError, match=r"unknown dataset '\.\.'; shipped: openmoji"):
        dataset_schema("..")


@pytest.mark.parametrize("prepare", ["absent", "empty", "parents"])
def test_a_copy_is_complete_and_leaves_nothing_beside(tmp_path, prepare):
    out = tmp_path / "a" / "b" if prepare == "parents" else tmp_path / "copy"
    if prepare == "empty":
        out.mkdir()
    assert copy_dataset("openmoji", out) == out
    assert files(out) == files(dataset_schema("openmoji").parent)
    assert list(out.parent.iterdir()) == [out]
    schema = yaml.safe_load((out / "schema.yaml").read_text())
    assert pq.read_metadata(out / schema["nodes"]["file"]).num_rows == 2456


def test_a_copy_belongs_to_the_user(tmp_path, monkeypatch):
    """The shipped files may be read-only, the copies are writable; a relative path is taken from the working folder."""
    monkeypatch.chdir(tmp_path)
    out = copy_dataset("openmoji", "data")
    assert out == tmp_path / "data"
    assert out.stat().st_mode & 0o700 == 0o700
    assert all(file.stat().st_mode & 0o600 == 0o600 for file in out.iterdir())


def test_what_is_there_already_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="a folder that is not empty; needed a new or an empty folder"):
        copy_dataset("openmoji", tmp_path)
    with pytest.raises(InputError, match="is a file"):
        copy_dataset("openmoji", tmp_path / "notes.txt")
    with pytest.raises(InputError, match="cannot be written there"):
        copy_dataset("openmoji", tmp_path / "notes.txt" / "below")
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    copied = []

    def fail_on_the_second(source, target):
        if copied:
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())
        copied.append(target)

    monkeypatch.setattr(registry.shutil, "copyfile", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        copy_dataset("openmoji", tmp_path / "copy")
    assert copied
    assert list(tmp_path.iterdir()) == []
