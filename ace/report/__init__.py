"""What runs look like to a reader: a page in the browser, a gallery, and figures for a paper."""

from ace.report.calibration import write_calibration
from ace.report.figure import write_figure, write_gallery
from ace.report.page import write_comparison, write_report

__all__ = ["write_calibration", "write_comparison", "write_figure", "write_gallery", "write_report"]
