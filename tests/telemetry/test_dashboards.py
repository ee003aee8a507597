"""Prometheus' and Grafana's files against what the code really exports."""

import json
import re
import urllib.request
from pathlib import Path

import ray
import yaml
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

CLUSTER = Path(__file__).parents[2] / "cluster"
GRAFANA = CLUSTER / "grafana"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def _dashboard() -> dict:
    return json.loads((GRAFANA / "dashboards" / "optimag.json").read_text(encoding="utf-8"))


def _expressions(dashboard: dict) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_every_metric_shown_is_exported(scraped: Samples) -> None:
    # Nodes that are pending or have failed are told of by an autoscaler alone.
    of_ray = {f"ray_{name}" for name in METRICS_GAUGES if name.startswith("cluster_")}
    for expression in _expressions(_dashboard()):
        names = set(re.findall(r"\bray_\w+", expression))
        assert names, expression
        assert names <= set(scraped) | of_ray, expression


def test_every_label_that_is_asked_for_is_exported(scraped: Samples) -> None:
    for expression in _expressions(_dashboard()):
        for name, matchers in re.findall(r"\b(ray_\w+)\{([^}]*)\}", expression):
            labels = {label for found, _ in scraped[name] for label in found}
            assert set(re.findall(r"(\w+)=", matchers)) <= labels, expression


def test_every_figure_of_a_run_is_shown(scraped: Samples) -> None:
    shown = set(re.findall(r"\bray_\w+", " ".join(_expressions(_dashboard()))))
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in scraped if name.startswith("ray_optimag_")}
    left_out = {"ray_optimag_task_loss", "ray_optimag_epoch_seconds", "ray_optimag_ppr_nodes_total"}
    assert ours - {re.sub("_(sum|count)$", "", name) for name in shown} == left_out


def test_the_dashboard_is_whole() -> None:
    dashboard = _dashboard()
    assert {"uid", "title", "schemaVersion", "time", "templating", "panels"} <= set(dashboard)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == source["uid"]
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/optimag.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")


def test_prometheus_discovers_the_nodes_by_rays_own_list(ray_session: None, metrics_url: str) -> None:
    config = yaml.safe_load((CLUSTER / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    assert set(discovery) <= {"url", "refresh_interval", "authorization"}
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/ray_token"}
    # The same path, with the same kind of header, from the session's dashboard.
    path = discovery["url"].removeprefix("http://head:8265")
    assert path.startswith("/api/")
    dashboard = ray._private.worker._global_node.webui_url  # type: ignore[attr-defined]
    headers = get_auth_headers_if_auth_enabled({})
    assert all(value.startswith("Bearer ") for value in headers.values())
    answer = urllib.request.urlopen(urllib.request.Request(f"http://{dashboard}{path}", headers=headers), timeout=30)
    targets = {target for group in json.load(answer) for target in group["targets"]}
    assert re.sub("^http://|/metrics$", "", metrics_url) in targets
