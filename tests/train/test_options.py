"""Run configurations: variants, overrides, and what is said of a wrong one."""

import math
import pickle
from pathlib import Path

import pytest
import yaml

from optimag_dist.options import dump_options, load_options
from optimag_dist.train.options import RunConfig, VariantConfig, fingerprint
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
    variants = _load(tmp_path, "optim.lr=0.5").resolve()
    assert list(variants) == ["off", "on"]
    assert variants["off"].regulariser.weight == 0
    assert not variants["off"].needs_ppr
    assert variants["on"].regulariser.rho == 0.5
    assert variants["on"].regulariser.weight is None
    assert variants["on"].regulariser.share > 0
    assert variants["on"].needs_ppr
    assert variants["on"].model.backbone == "gcn"
    assert {v.train.epochs for v in variants.values()} == {7}
    assert {v.optim.lr for v in variants.values()} == {0.5}


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
        (["optim.lr=1e31"], r"'optim.lr'.*less than or equal to 10{30}; got '1e31'"),
        (["optim.lr=.inf"], r"'optim.lr'.*less than or equal to 10{30}; got inf"),
        (["optim.lr=.nan"], r"'optim.lr'.*got nan"),
        (["optim.lr=0"], r"'optim.lr'.*greater than 0; got 0"),
        (["name.x=1"], "key 'name': .*valid string"),
        (["workers.count=50"], "workers.count=50 needs sampling.groups of at least as many, got 2"),
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
        (["variants.on={workers.count: 1}"], "variants share one group of workers"),
        (["variants={a/b: {}}"], "key 'variants.a/b': it names a folder"),
        (["variants={results.parquet: {}}"], "variants.results.parquet: a run has a file or folder of that name"),
        (["variants.on={regulariser: {1: 2}}"], "variants.on: unknown key 'regulariser.1'"),
        (["variants={1: {}}"], "key 'variants.1': Input should be a valid string; got 1"),
        (["optim.lr=.inf"], "'optim.lr'.*less than or equal"),
        (["workers.stall_timeout_s=.inf"], "'workers.stall_timeout_s'"),
        (["store=''"], "key 'store': needed a path, got an empty text"),
        ([f"seeds=[{2**63}]"], r"below 2\*\*63"),
        (["train: {"], "needed key=value"),
        (["optim.lr={"], "not valid YAML"),
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

    assert of() == of("train.epochs=50", "workers.count=2", "checkpoint.every=3")
    assert len({of(), of(seed=1), of("optim.lr=0.5"), of("sampling.groups=3"), of("ppr.k=8")}) == 5
    # A share decides the weights only where no weight is given, which stands as it is.
    weighed = "regulariser.weight=50"
    assert len({of(), of("regulariser.share=2"), of("regulariser.warm_up=3"), of(weighed)}) == 4
    assert of(weighed) == of(weighed, "regulariser.share=2", "regulariser.warm_up=3")
    # Of options that there were in all versions it stays, and so do the fits that are named by it.
    assert of(weighed, "regulariser.kind=local") == "9363adc46ebe59ea"


@pytest.mark.parametrize(
    ("regulariser", "expected"),
    [
        ({"kind": "local", "weight": 0}, "1626f9034c2456f8"),
        ({"kind": "local", "weight": 50, "agreement": 2, "differentiate": True}, "fdad855fd44cdb30"),
        ({"kind": "ufgw", "weight": 50}, "93798ae8b23d2978"),
        ({"kind": "ufgw", "weight": 3, "anchor": "identity", "n_outer": 7, "rho": 0.1}, "2a905508d1aa4574"),
    ],
)
def test_fits_of_earlier_versions_keep_their_fingerprint(regulariser: dict, expected: str) -> None:
    """What they said of these configurations, in which kind ``ufgw`` was ``transport``."""
    assert fingerprint(VariantConfig.model_validate({"regulariser": regulariser}), 0) == expected


def test_a_section_whose_kind_changes_starts_anew(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        regulariser={"agreement": 2, "weight": 7, "share": 3},
        variants={"sent": {"regulariser.kind": "ufgw"}, "near": {"regulariser.kind": "local"}},
    )
    base = config.regulariser
    assert (base.kind, base.agreement, base.weight, base.share) == ("robust", 2, 7, 3)
    sent, near = (config.resolve()[name].regulariser for name in ("sent", "near"))
    assert (sent.kind, sent.weight, sent.share, sent.tau, sent.n_outer) == ("ufgw", None, 1, 0.5, 5)
    assert (near.kind, near.weight, near.share, near.agreement) == ("local", None, 1, 0.6)
    assert pickle.loads(pickle.dumps(sent)) == sent
    message = r"variants.sent: unknown key 'regulariser.agreement'; .*known here: alpha, anchor, delta, epsilon, kind"
    with pytest.raises(InputError, match=message):
        _load(tmp_path, variants={"sent": {"regulariser.kind": "ufgw", "regulariser.agreement": 1}})


def test_keys_that_have_moved_are_all_named(tmp_path: Path) -> None:
    old = {"train": {"workers": 1, "epochs": 3}, "regulariser": {"plan": "ufgw", "tau": 1}}
    old["sampling"] = {"anchors": 8}
    with pytest.raises(InputError) as told:
        _load(tmp_path, "train.checkpoint_every_s=5", **old, variants={"on": {"regulariser.prior": "identity"}})
    for line in (
        "key 'train.workers' is now 'workers.count'",
        "key 'regulariser.plan' is now 'regulariser.kind'",
        "key 'sampling.anchors' is now 'sampling.targets'",
        "key 'variants.on.regulariser.prior' is now 'variants.on.regulariser.anchor'",
        "key 'train.checkpoint_every_s' is now 'checkpoint.every_s'",
    ):
        assert line in str(told.value)
    # The kind that there was before had a plan; the published problem, which is of that name now, has none.
    with pytest.raises(InputError, match=r"key 'regulariser\.plan' is now 'regulariser\.kind'"):
        _load(tmp_path, regulariser={"kind": "ufgw", "plan": "local"}, variants={})
    assert _load(tmp_path, "regulariser.kind=ufgw", variants={}).regulariser.kind == "ufgw"


# What a run of earlier versions began its config.yaml with, every key written out.
OF_BEFORE = """
ppr: {teleport: 0.15, eps: 0.0001, k: 32}
sampling: {groups: 4, anchors: 48}
model: {hidden: 64}
regulariser: {kind: ufgw, weight: 7.0, plan: local, alpha: 0.5, rho: 0.2, agreement: 0.6, consistency: 0.0,
  delta: 1.0e-05, differentiate: false, tau: 0.5, epsilon: 0.01, prior: ppr, n_outer: 5, n_sinkhorn: 20}
task: {kind: node_classification}
train: {workers: 3, cpus_per_worker: 2, device: cpu, epochs: 9, lr: 0.02, weight_decay: 0.1, patience: 4, eval_every: 2,
  checkpoint_every: 5, checkpoint_every_s: 60.0, max_failures: 2, start_timeout_s: 90.0, stall_timeout_s: 70.0,
  placement: sharded, owners: 5, kept_mass: none}
name: before
store: /stores/x
out: /runs
seeds: [0]
tracking: {}
variants:
  as it is: {}
  sent: {regulariser.plan: transport, regulariser.prior: identity, train.lr: 0.5, sampling.anchors: 24}
  off: {regulariser: {weight: 0}}
compare_to: {}
"""


def test_a_run_of_before_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OF_BEFORE.replace("as it is", "same"))
    config = load_options(RunConfig, tmp_path / "config.yaml", ["optim.weight_decay=0.3"])
    assert config.workers.model_dump() == {
        "count": 3,
        "cpus": 2,
        "device": "cpu",
        "placement": "sharded",
        "shard_servers": 5,
        "max_failures": 2,
        "start_timeout_s": 90,
        "stall_timeout_s": 70,
    }
    assert config.train.model_dump() == {"epochs": 9, "patience": 4, "eval_every": 2, "kept_mass": "none"}
    assert (config.checkpoint.every, config.checkpoint.every_s, config.optim.weight_decay) == (5, 60, 0.3)
    variants = config.resolve()
    assert (variants["same"].regulariser.kind, variants["same"].regulariser.rho) == ("local", 0.2)
    # What both kinds have was not said anew with the kind.
    sent = {"kind": "ufgw", "weight": 7, "alpha": 0.5, "rho": 0.2, "anchor": "identity"}
    assert sent.items() <= variants["sent"].regulariser.model_dump().items()
    assert [v.optim.lr for v in variants.values()] == [0.02, 0.5, 0.02]
    assert [v.sampling.targets for v in variants.values()] == [48, 24, 48]
    assert (variants["off"].regulariser.weight, variants["off"].regulariser.rho) == (0, 0.2)
    dump_options(config, tmp_path / "saved.yaml")
    assert load_options(RunConfig, tmp_path / "saved.yaml") == config
