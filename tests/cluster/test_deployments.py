"""The files under cluster/ and docker-compose.yml: what can be checked without the clouds and daemons they are for.

Whole schemas: Compose's own, as check-jsonschema brings it; Ray's own for the cluster launcher. KubeRay's stands in its
custom resource definitions: KUBERAY_CRDS names a folder of them (ray-operator/config/crd/bases of a release).
"""

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .compose import SECRETS, service

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
KUBERAY = [CLUSTER / "kuberay/raycluster.yaml", CLUSTER / "kuberay/rayjob-demo.yaml"]
DOCKERFILE = CLUSTER / "docker/Dockerfile"
EVERYTHING = sorted(p for p in CLUSTER.rglob("*") if p.is_file() and p.suffix != ".pyc")
COMPOSE = ROOT / "docker-compose.yml"


def pinned(name: str) -> str:
    return re.search(rf"^{name}==([^; \n]+)", (ROOT / ".ci/constraints.txt").read_text(), re.MULTILINE)[1]


def version() -> str:
    return re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def clusters() -> Iterator[dict[str, Any]]:
    """The specification of every RayCluster."""
    for path in KUBERAY:
        for document in documents(path):
            if document["kind"] in ("RayCluster", "RayJob"):
                yield document["spec"].get("rayClusterSpec", document["spec"])


def groups() -> Iterator[dict[str, Any]]:
    for spec in clusters():
        yield from [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


# -- Compose -----------------------------------------------------------------------------------------------------------


def test_compose_file_follows_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*checker, COMPOSE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_publishes_on_loopback_alone_and_confines_every_service() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    published = [port for s in compose["services"].values() for port in s.get("ports", [])]
    assert len(published) == 2
    for name, content in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in content.get("ports", [])), name
        assert content["cap_drop"] == ["ALL"], name
        assert content["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in content, name
        # A fixed name would allow one container only, whatever --scale asks for.
        assert "container_name" not in content, name


def test_compose_refuses_to_start_without_secrets_and_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH: name the file of the token"):
        service("head", {"GRAFANA_PASSWORD_PATH": "there"})
    with pytest.raises(ValueError, match="GRAFANA_PASSWORD_PATH: name the file of the password"):
        service("head", {"RAY_AUTH_TOKEN_PATH": "there"})


def test_what_compose_mounts_is_there_and_prometheus_finds_head_and_token() -> None:
    for name in ("prometheus", "grafana"):
        for volume in service(name, SECRETS)["volumes"]:
            if volume.startswith("."):
                assert (ROOT / volume.partition(":")[0]).is_dir(), volume
    scraped = yaml.safe_load((CLUSTER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    discovery = scraped[0]["http_sd_configs"][0]
    assert discovery["url"].startswith("http://head:8265/")
    assert discovery["authorization"]["credentials_file"] == "/run/secrets/ray_token"
    assert "ray_token" in service("prometheus", SECRETS)["secrets"]


# -- the image ---------------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """Instruction and argument, continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_everything_the_image_copies_is_there_and_not_ignored() -> None:
    kept = [line[1:] for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"]
    copied = [argument.split()[:-1] for word, argument in dockerfile() if word == "COPY" and "--from" not in argument]
    for source in [source for sources in copied for source in sources]:
        assert list(ROOT.glob(source)), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), f"{source} is ignored"


def test_the_image_pins_its_bases_uses_every_argument_and_is_not_root() -> None:
    instructions = dockerfile()
    names = {argument.split("=")[0] for word, argument in instructions if word == "ARG"}
    rest = " ".join(argument for word, argument in instructions if word != "ARG")
    assert all(f"${{{name}}}" in rest for name in names)
    stages = [argument.split()[-1] for word, argument in instructions if word == "FROM" and " AS " in argument]
    for argument in [argument for word, argument in instructions if word == "FROM"]:
        base = argument.split()[0]
        assert base in {"${PYTHON_IMAGE}", "compiler-${VARIANT}", *stages}
    assert {"compiler-cpu", "compiler-cuda"} <= set(stages)
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)
    (user,) = [argument for word, argument in instructions if word == "USER"]
    assert user == "${UID}"
    assert "PIP_CONSTRAINT" in rest


# -- Ray's cluster launcher --------------------------------------------------------------------------------------------


@pytest.fixture
def a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token, which the launcher copies to the nodes."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_the_launcher_accepts_the_file(path: Path, a_token: None) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    workers = [t for name, t in config["available_node_types"].items() if name != config["head_node_type"]]
    assert {t["min_workers"] for t in workers} == {0}
    assert all("spot" in yaml.safe_dump(t["node_config"]).lower() for t in workers)
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    config["min_workers_typo"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_workers_typo"):
        validate_config(config)


# -- KubeRay -----------------------------------------------------------------------------------------------------------


def structural(schema: Any) -> Any:
    """A definition's schema as JSON schema, as strict as the API server with field validation."""
    if isinstance(schema, list):
        return [structural(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: structural(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@pytest.fixture(scope="module")
def definitions() -> dict[str, Any]:
    """Kind → schema, of the custom resource definitions that are at hand."""
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS does not name a folder of KubeRay's custom resource definitions")
    schemas = {}
    for kind in ("rayclusters", "rayjobs"):
        text = (Path(folder) / f"ray.io_{kind}.yaml").read_text()
        definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (schema,) = [v["schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"]
        schemas[definition["spec"]["names"]["kind"]] = structural(schema["openAPIV3Schema"])
    return schemas


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_the_operator_accepts_the_file(path: Path, definitions: dict[str, Any]) -> None:
    (document,) = [document for document in documents(path) if document["kind"] in definitions]
    # The API server has its own schema for it.
    document.pop("metadata")
    jsonschema.validate(document, definitions[document["kind"]])
    document["spec"]["rayVersionn"] = "2.60.0"
    with pytest.raises(jsonschema.ValidationError, match="rayVersionn"):
        jsonschema.validate(document, definitions[document["kind"]])


def test_pods_are_not_root_ask_for_what_they_may_take_and_show_a_token() -> None:
    for spec in clusters():
        assert spec["authOptions"] == {"mode": "token", "secretName": "optimag-token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in groups():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        mounted = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted


def test_the_cluster_starts_from_no_workers_and_the_job_runs_a_recipe_of_the_image() -> None:
    (cluster,) = [d for d in documents(KUBERAY[0]) if d["kind"] == "RayCluster"]
    assert cluster["spec"]["enableInTreeAutoscaling"]
    assert {group["minReplicas"] for group in cluster["spec"]["workerGroupSpecs"]} == {0}
    ((job,),) = [documents(KUBERAY[1])]
    recipe = Path(re.search(r"/opt/optimag/(jobs/\S+\.yaml)", job["spec"]["entrypoint"])[1])
    assert (ROOT / recipe).exists()


# -- all of them -------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_the_constraints() -> None:
    assert all(spec["rayVersion"] == pinned("ray") for spec in clusters())
    images = re.findall(r"optimag:([\w.]+)-(?:cpu|cuda)", "".join(p.read_text() for p in [*EVERYTHING, COMPOSE]))
    assert len(images) >= 8
    assert set(images) == {version()}
    for path in [*LAUNCHER, *KUBERAY]:
        assert "rayproject/" not in path.read_text()


@pytest.mark.parametrize("path", [*EVERYTHING, COMPOSE], ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_a_port_to_the_world(path: Path) -> None:
    text = path.read_text()
    value = r"""(?i)\b\w*(token|password|secret|api_?key)\w*["']?\s*[:=]\s*["']?[A-Za-z0-9+_-]{20,}["']?\s*$"""
    assert not re.search(value, text, re.MULTILINE)
    assert "PRIVATE KEY" not in text
    assert not re.search(r"\b(NodePort|LoadBalancer)\b|hostNetwork|0\.0\.0\.0/0", text)
    # Within Compose's own network all addresses are the container's, and the dashboard asks for the token.
    assert "0.0.0.0" not in text or path == COMPOSE
