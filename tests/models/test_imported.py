"""Backbones that users bring: how their classes are found, what is asked of them, and the document's example."""

import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml
from torch import Tensor, nn

from optimag_dist.imported import absolute, load_class
from optimag_dist.models.backbones import BACKBONES, check_backbone, make_backbone
from optimag_dist.types import Block, InputError

DOCUMENT = (Path(__file__).parents[2] / "docs/backbones.md").read_text(encoding="utf-8")

# A backbone that keeps the contract; the tests break one line of it each.
SUM = """
from torch import Tensor, nn
from optimag_dist.sparse import spmm

NUMBER = 3

class Sum(nn.Module):
    def __init__(self, modalities, width, hidden, num_layers, dropout, *, scale=1.0):
        super().__init__()
        widths = [modalities * width] + [hidden] * (num_layers - 1)
        self.maps = nn.ModuleList(nn.Linear(w, hidden) for w in widths)
        self.scale = scale

    def forward(self, x, blocks, degrees):
        for index, block in enumerate(blocks):
            x = self.layer(index, x[:block.num_src], block, degrees)
        return x

    def layer(self, index, x, block, degrees):
        x = self.maps[index](x)
        return self.scale * (x[:block.num_dst] + spmm(block.indptr, block.indices, None, x))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_gives_the_same_class_however_it_is_named(here: Path) -> None:
    (here / "models").mkdir()
    (here / "models/mine.py").write_text(SUM)
    (here / "link.py").symlink_to("models/mine.py")
    cls = load_class("models/mine.py:Sum", nn.Module)
    assert issubclass(cls, nn.Module)
    assert cls is load_class(f"{here}/models/mine.py:Sum", nn.Module)
    assert cls is load_class("models/../link.py:Sum", nn.Module)
    # Another file of the same name is another module.
    (here / "mine.py").write_text(SUM)
    assert load_class("mine.py:Sum", nn.Module) is not cls
    assert sys.modules[cls.__module__].Sum is cls


def test_a_module_is_imported_as_python_does(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "package_of_mine").mkdir()
    (here / "package_of_mine/__init__.py").touch()
    (here / "package_of_mine/nets.py").write_text(SUM)
    with pytest.raises(InputError, match=r"'package_of_mine.nets' cannot be imported"):
        load_class("package_of_mine.nets:Sum", nn.Module)
    monkeypatch.syspath_prepend(here)
    cls = load_class("package_of_mine.nets:Sum", nn.Module)
    assert cls.__module__ == "package_of_mine.nets"
    check_backbone("package_of_mine.nets:Sum", {"scale": 0.5})


def test_only_files_become_absolute(here: Path) -> None:
    assert absolute("a/b.py:C") == f"{here}/a/b.py:C"
    assert absolute(f"{here}/b.py:C") == f"{here}/b.py:C"
    assert absolute("package.module:C") == "package.module:C"
    assert absolute("sage") == "sage"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "sagee",
            r"unknown 'sagee'; did you mean 'sage'\? known: mlp, .*mixture, or your own as package.module:",
        ),
        ("mine.py", r"unknown 'mine.py'; known: .*path/to/file.py:ClassName"),
        ("absent.py:Sum", r"'absent.py:Sum': no file /.*/absent.py; needed .* that all nodes see"),
        ("no_such.module:Sum", r"'no_such.module' cannot be imported .*installed or on PYTHONPATH on every worker, or"),
        (":Sum", r"'' cannot be imported"),
        ("mine.py:Sun", r"mine.py has no 'Sun'; did you mean 'Sum'\? of Module there are: Sum$"),
        ("mine.py:NUMBER", r"needed a subclass of torch.nn.*Module; got 3"),
        ("mine.py:Tensor", r"needed a subclass of torch.nn.*Module; got <class 'torch.Tensor'>"),
        ("broken.py:Sum", r"broken.py cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_cannot_be_found_is_named(here: Path, path: str, message: str) -> None:
    (here / "mine.py").write_text(SUM)
    (here / "broken.py").write_text("1 / 0")
    for _ in range(2):  # a file that failed has left nothing behind
        with pytest.raises(InputError, match=message):
            check_backbone(path)
        with pytest.raises(InputError, match=message):
            make_backbone(path, 2, 8, 8, 2, 0.0)


@pytest.mark.parametrize("parameter", ["deep=True", "deep: bool", "deep: 'bool'"])
def test_a_text_is_not_taken_for_true(parameter: str, here: Path) -> None:
    (here / "mine.py").write_text(SUM.replace("*, scale=1.0", f"*, scale=1.0, {parameter}"))
    check_backbone("mine.py:Sum", {"deep": False})
    with pytest.raises(InputError, match=r"model\.backbone_settings\.deep: needed true or false, got 'off'"):
        check_backbone("mine.py:Sum", {"deep": "off"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "num_layers, dropout, *",
            "num_layers, *",
            r"too many positional arguments; its constructor is \(modalities, ",
        ),
        ("*, scale=1.0", "*, scale", r"model.backbone_settings \{\}: missing a required .*'scale'"),
        ("self.scale = scale", "self.scale = len(scale)", r"failed on a toy batch of two nodes: TypeError: object of"),
        ("return x\n", "return x, x\n", r"forward: needed a row of hidden=8 .* \(2, 8\); got tuple"),
        ("return x\n", "return x[:1]\n", r"forward: .*\(2, 8\); got \(1, 8\)"),
        ("x = self.layer(index, x[:block.num_src]", "x = self.layer(index, x[:1]", r"'.*Sum' failed on a toy batch"),
        (
            "x = self.layer(index, x[:block.num_src]",
            "x = self.layer(index, x - x.mean()",
            r"in evaluation mode, one node alone: a node alone gives something else than beside another one",
        ),
        (
            "enumerate(blocks)",
            "enumerate(blocks[1:])",
            r"parameters maps.1.weight, maps.1.bias got no gradient",
        ),
        ("return x\n", "return x / degrees[:2, None]\n", r"forward: NaN or infinity .* no neighbours"),
        ("None, x))", "None, x) / block.indptr.diff()[:, None])", r"forward: NaN or infinity .* no neighbours"),
        ("return x\n", "return x + 1\n", r"layer, one block after the other, must give what forward gives. .* by 1"),
        ("return self.scale * (x[:block.num_dst]", "return self.scale * (x", r"failed on a toy batch"),
        ("nn.Linear(w, hidden)", "nn.LazyLinear(hidden)", r"maps.0.weight, .* no shape before the first batch.*lazy"),
        ("x = self.maps[index](x)", "x = self.maps[index](x).detach()", r"forward: its result is detached"),
        ("x = self.maps[index](x)", "x = self.maps[index](x.detach())", r"forward: no gradient reaches x"),
        ("return x\n", "return x.double()\n", r"forward: needed float32, .*; got float64"),
        (
            "self.scale = scale",
            "self.scale = nn.Parameter(Tensor([scale])); self.idle = nn.Linear(2, 3)",
            r"parameters idle.weight, idle.bias got no gradient: .* in vain",
        ),
        (
            "x = self.maps[index](x)",
            "x = self.maps[index](x); self.late = getattr(self, 'late', None) or nn.Linear(1, 1)",
            r"parameters late.weight, late.bias were made in forward",
        ),
        (
            "x = self.maps[index](x)",
            "x = nn.functional.dropout(self.maps[index](x))",
            r"in evaluation mode: the same batch gives something else the second time; dropout must be",
        ),
        (
            "x = self.maps[index](x)",
            "x = nn.functional.normalize(self.maps[index](x), dim=0)",
            r"one node alone: a node alone gives something else .* \(they differ by",
        ),
    ],
)
def test_a_broken_contract_is_named(here: Path, old: str, new: str, message: str) -> None:
    (here / "mine.py").write_text(SUM)
    check_backbone("mine.py:Sum")
    assert old in SUM
    (here / "other.py").write_text(SUM.replace(old, new))
    with pytest.raises(InputError, match=message):
        check_backbone("other.py:Sum")


def test_batch_normalisation_is_welcome_where_no_group_has_one_node(here: Path) -> None:
    normed = SUM.replace("self.scale = scale", "self.scale = scale; self.norm = nn.BatchNorm1d(hidden)")
    normed = normed.replace("x = self.maps[index](x)", "x = self.norm(self.maps[index](x))")
    (here / "mine.py").write_text(normed)
    check_backbone("mine.py:Sum")
    with pytest.raises(InputError, match=r"'mine.py:Sum', a training step of one node failed .* more than 1 value"):
        check_backbone("mine.py:Sum", smallest_group=1)
    # Statistics of the batch in evaluation too.
    (here / "batch.py").write_text(normed.replace("1d(hidden)", "1d(hidden, track_running_stats=False)"))
    with pytest.raises(InputError, match=r"one node alone: a node alone gives something else|one node alone failed"):
        check_backbone("batch.py:Sum")


def test_a_setting_that_is_not_there_is_named(here: Path) -> None:
    (here / "mine.py").write_text(SUM)
    with pytest.raises(
        InputError, match=r"\{'scales': 2\}: got an unexpected keyword argument 'scales'; .*scale=1.0\)"
    ):
        check_backbone("mine.py:Sum", {"scales": 2})
    with pytest.raises(InputError, match=r"'sage', .*\{'scale': 2\}: got an unexpected keyword argument 'scale'"):
        check_backbone("sage", {"scale": 2})
    with pytest.raises(InputError, match=r"multiple values for argument 'hidden'"):
        check_backbone("mine.py:Sum", {"hidden": 2})


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_ours_keeps_the_contract(name: str, num_layers: int) -> None:
    before = torch.get_rng_state()
    check_backbone(name, modalities=3, width=5, hidden=6, num_layers=num_layers)
    assert torch.equal(before, torch.get_rng_state())


def test_a_layer_is_not_asked_for_and_neither_are_messages(here: Path) -> None:
    (here / "plain.py").write_text(
        dedent("""
        from torch import nn

        class Passing(nn.Module):
            def __init__(self, modalities, width, hidden, num_layers, dropout):
                super().__init__()
                self.map = nn.Linear(modalities * width, hidden)

            def forward(self, x, blocks, degrees):
                return self.map(x[:blocks[-1].num_dst])

        class Alone(Passing):
            passes_messages = False

            def forward(self, x, blocks, degrees):
                assert blocks == () and len(x) <= 2
                return self.map(x)
        """)
    )
    for name, passes in (("Passing", True), ("Alone", False)):
        check_backbone(f"plain.py:{name}")
        assert make_backbone(f"plain.py:{name}", 2, 5, 7, 2, 0.0).passes_messages is passes


def test_the_documents_example_is_a_backbone(here: Path) -> None:
    ((program,), (config,)) = (
        re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
        for language in ("python", "yaml")
    )
    model = yaml.safe_load(config)["model"]
    (here / "my_backbone.py").write_text(program)
    check_backbone(model["backbone"], model["backbone_settings"])
    backbone = make_backbone(model["backbone"], 2, 3, 4, 2, 0.0, **model["backbone_settings"]).double()
    adjacency = torch.zeros(5, 5, dtype=torch.float64)
    adjacency[[0, 0, 1, 2, 4], [1, 2, 0, 0, 2]] = 1
    arcs = adjacency.nonzero()
    block = Block(torch.tensor([0, 2, 3, 4, 4, 5]), arcs[:, 1], 5)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    found = backbone(x, (block, block), adjacency.sum(1))
    found.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in (x, *backbone.parameters()))
    assert (backbone.eps.grad != 0).all()
    expected: Tensor = x
    for first, _, second, *_ in backbone.maps:
        summed = 1.1 * expected + adjacency @ expected
        hidden = (summed @ first.weight.T + first.bias).relu()
        expected = (hidden @ second.weight.T + second.bias).relu()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # eps is kept in single precision first


def test_the_documents_table_has_every_backbone() -> None:
    assert re.findall(r"^\| `(\w+)` \|", DOCUMENT, flags=re.MULTILINE) == list(BACKBONES)
