"""What a run or a sweep has learned, for people: one HTML page, and the comparison of variants in a terminal."""

from optimag_dist.report.comparison import comparison_table, render_comparison
from optimag_dist.report.page import write_report
from optimag_dist.report.sweep import write_sweep_report
from optimag_dist.report.sweep_data import is_sweep
