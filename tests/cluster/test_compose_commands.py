"""The commands and health checks of docker-compose.yml on plain processes, each container on a host of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .compose import SECRETS, service
from .hosts import BIN, Host, Network, obstacle, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))]


class Container:
    """A service of docker-compose.yml on a host: its command, environment, secrets and health check."""

    def __init__(self, network: Network, index: int, name: str, token: Path, log: Path) -> None:
        self._content = service(name, {**SECRETS, "OPTIMAG_WORKER_CPUS": "1"})
        self.host: Host = network.add(index)
        self._log = log
        secrets = "mount -t tmpfs tmpfs /run && mkdir /run/secrets && install -m 600 $0 /run/secrets/ray_token"
        self.host.run("sh", "-c", f"{secrets} && echo 10.77.0.1 head >> /etc/hosts", token)

    def start(self) -> None:
        program, *arguments = self._content["command"]
        self.process = self.host.popen(
            BIN / program, *arguments, env=self._content["environment"], stdout=self._log.open("wb"), stderr=-2
        )

    def healthy(self) -> bool:
        kind, *command = self._content["healthcheck"]["test"]
        assert kind == "CMD"
        return self.host.popen(*command, stderr=subprocess.DEVNULL).wait() == 0


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, Container]]:
    folder = tmp_path_factory.mktemp("compose")
    token = folder / "its-token"
    # As openssl writes it: with a line end.
    token.write_text("0123456789abcdef" * 4 + "\n")
    with Network(folder / "hosts", {"RAY_AUTH_TOKEN_PATH": str(token)}) as network:
        head, worker = (Container(network, i, n, token, folder / n) for i, n in ((1, "head"), (2, "worker")))
        assert not head.healthy()
        head.start()
        wait_until(head.healthy, "the head's health")
        assert not worker.healthy()
        worker.start()
        wait_until(worker.healthy, "the worker's health")
        yield head, worker


def test_head_and_worker_are_healthy_and_one_cluster(containers: tuple[Container, Container]) -> None:
    head, _ = containers
    wait_until(lambda: head.host.alive() == 2, "two nodes")


def test_a_job_handed_to_the_published_port_runs_and_one_without_the_token_is_refused(
    containers: tuple[Container, Container], tmp_path: Path
) -> None:
    head, _ = containers
    recipe = tmp_path / "short.yaml"
    recipe.write_text(yaml.safe_dump({"name": "short", "directory": str(tmp_path), "steps": ["data list"]}))
    said = head.host.run(BIN / "optimag", "submit", recipe, "--follow", "--address", "http://127.0.0.1:8265")
    assert "openmoji" in said
    refused = head.host.run(
        "curl", "-s", "-o", tmp_path / "answer", "-w", "%{http_code}", "http://127.0.0.1:8265/api/jobs/"
    )
    assert refused == "401"


def test_prometheus_finds_both_nodes_with_the_token(containers: tuple[Container, Container], tmp_path: Path) -> None:
    head, _ = containers
    scraped = yaml.safe_load((Path(__file__).parents[2] / "cluster/prometheus/prometheus.yml").read_text())
    url = scraped["scrape_configs"][0]["http_sd_configs"][0]["url"]
    header = "Authorization: Bearer $(cat /run/secrets/ray_token)"

    def both_are_told() -> bool:
        told = head.host.run("sh", "-c", f'curl -sf -H "{header}" {url} || true')
        return "10.77.0.1:8080" in told and "10.77.0.2:8080" in told

    wait_until(both_are_told, "both nodes at the service discovery")
