"""What a run has learned, for people: one HTML page, and the comparison of its variants as data or in a terminal."""

from optimag_dist.report.page import write_report
from optimag_dist.report.statistics import comparison_table
from optimag_dist.report.terminal import render_comparison

__all__ = ["comparison_table", "render_comparison", "write_report"]
