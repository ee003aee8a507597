"""What a run or a sweep has learned, for people: one HTML page, and the comparison of variants in a terminal."""

from optimag_dist.report.comparison import comparison_table
from optimag_dist.report.page import write_report
from optimag_dist.report.sweep import write_sweep_report
from optimag_dist.report.sweep_data import is_sweep
from optimag_dist.report.terminal import render_comparison

__all__ = ["comparison_table", "is_sweep", "render_comparison", "write_report", "write_sweep_report"]
