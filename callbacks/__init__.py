"""Lightning callbacks: one job each."""

from callbacks.export_model import ExportModel
from callbacks.sample_grid import SampleGrid

__all__ = ["ExportModel", "SampleGrid"]
