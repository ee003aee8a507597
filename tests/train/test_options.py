"""Run configurations: variants, overrides, and what is said of a wrong one."""

import math
from pathlib import Path

import pytest
import yaml

from optimag_dist.options import dump_options, load_options
from optimag_dist.train.options import RunConfig, fingerprint
from optimag_dist.types import InputError

BASE = {
    "name": "run",
    "store": "stores/x",
    "train": {"epochs": 7},
    "variants": {"off": {"regulariser.weight": 0}, "on": {"regulariser": {"rho": 0.5}, "model.backbone": "gcn"}},
}


def _load(tmp_path: Path, *overrides: str, **changes: object) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return load_options(RunConfig, path, overrides)


def test_a_variant_changes_its_keys_and_keeps_the_rest(tmp_path: Path) -> None:
    variants = _load(tmp_path, "train.lr=0.5").resolve()
    assert list(variants) == ["off", "on"]
    assert variants["off"].regulariser.weight == 0
    assert not variants["off"].needs_ppr
    assert variants["on"].regulariser.rho == 0.5
    assert variants["on"].regulariser.weight > 0
    assert variants["on"].model.backbone == "gcn"
    assert {v.train.epochs for v in variants.values()} == {7}
    assert {v.train.lr for v in variants.values()} == {0.5}


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = _load(tmp_path, "seeds=[3, 4]", "task.split={train: 0.1, val: 0.2}")
    dump_options(config, tmp_path / "saved.yaml")
    assert load_options(RunConfig, tmp_path / "saved.yaml") == config


def test_infinity_is_dumped_and_read_back_also_where_a_value_may_be_anything(tmp_path: Path) -> None:
    balanced = {"regulariser.rho": math.inf, "regulariser": {"rho": math.inf}}
    config = _load(tmp_path, "regulariser.rho=.inf", variants={"balanced": balanced})
    dump_options(config, tmp_path / "saved.yaml")
    saved = load_options(RunConfig, tmp_path / "saved.yaml")
    assert saved == config
    assert saved.variants["balanced"] == balanced
    assert saved.regulariser.rho == saved.resolve()["balanced"].regulariser.rho == math.inf


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=5"], r"run.yaml: unknown key 'train.epoch'; did you mean 'train.epochs'"),
        (["epochs=5"], r"unknown key 'epochs'; did you mean 'train.epochs'"),
        (["train.epochs"], "needed key=value"),
        (["train.epochs=0"], r"'train.epochs'.*greater than or equal to 1; got 0"),
        (["train.lr=1e31"], r"'train.lr'.*less than or equal to 10{30}; got '1e31'"),
        (["train.lr=.inf"], r"'train.lr'.*less than or equal to 10{30}; got inf"),
        (["train.lr=.nan"], r"'train.lr'.*got nan"),
        (["train.lr=0"], r"'train.lr'.*greater than 0; got 0"),
        (["name.x=1"], "holds a value, not a section"),
        (["train.workers=50"], "train.workers=50 needs sampling.groups of at least as many, got 2"),
        (["seeds=[1, 1]"], "seeds must be distinct"),
        (["name=../up"], r"key 'name': it names a folder: needed letters, digits and .* got '../up'"),
        (["name=''"], "key 'name': it names a folder"),
        (["name=.."], "key 'name': it names a folder"),
        (["name='a:b'"], "key 'name': it names a folder"),
        ([f"name={'long' * 60}"], "at most 200 bytes"),
        (["task.split={train: 0.7, val: 0.3}"], "leaves no test nodes"),
        (["task.split={trian: 0.7, val: 0.3}"], r"unknown key 'task.split.trian'; did you mean 'task.split.train'"),
        (["compare_to={'on': of}"], r"compare_to names 'of', which is none of the variants \['off', 'on'\]"),
        (["variants.on={model.backbon: gcn}"], r"unknown key 'model.backbon'; did you mean 'model.backbone'"),
        (["variants.on={train.workers: 1}"], "variants share one group of workers"),
        (["variants={a/b: {}}"], "key 'variants.a/b': it names a folder"),
        (["variants={results.parquet: {}}"], "variants.results.parquet: a run has a file or folder of that name"),
        (["variants.on={regulariser: {1: 2}}"], "variants.on: unknown key 'regulariser.1'"),
        (["variants={1: {}}"], "key 'variants.1': Input should be a valid string; got 1"),
        (["train.lr=.inf"], "'train.lr'.*less than or equal"),
        (["train.stall_timeout_s=.inf"], "'train.stall_timeout_s'"),
        (["store=''"], "key 'store': needed a path, got an empty text"),
        ([f"seeds=[{2**63}]"], r"below 2\*\*63"),
        (["train: {"], "needed key=value"),
        (["train.lr={"], "not valid YAML"),
    ],
)
def test_wrong_options_are_named(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        _load(tmp_path, *overrides)


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match=r"run.yaml: key 'store' is missing"):
        load_options(RunConfig, tmp_path / "run.yaml")
    with pytest.raises(InputError, match=r"gone.yaml: no such file"):
        load_options(RunConfig, tmp_path / "gone.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="needed a mapping"):
        load_options(RunConfig, tmp_path / "list.yaml")


def test_the_fingerprint_tells_what_decides_the_weights(tmp_path: Path) -> None:
    def of(*overrides: str, seed: int = 0) -> str:
        return fingerprint(_load(tmp_path, *overrides).resolve()["on"], seed)

    assert of() == of("train.epochs=50", "train.workers=2", "train.checkpoint_every=3")
    assert len({of(), of(seed=1), of("train.lr=0.5"), of("sampling.groups=3"), of("ppr.k=8")}) == 5
