"""What a run folder looks like to a reader: a contact sheet and an HTML page."""

from ace.report.gallery import write_gallery
from ace.report.page import write_report

__all__ = ["write_gallery", "write_report"]
