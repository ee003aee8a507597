"""Metrics of what runs, for those who watch: Ray's metrics (Prometheus, Grafana) and experiment trackers."""

from optimag_dist.telemetry.options import TrackingOptions, check_trackers

__all__ = ["TrackingOptions", "check_trackers"]
