"""Lightning callbacks, one job each, and what the loggers need."""

from callbacks.export_model import ExportModel
from callbacks.finite_loss import FiniteLoss
from callbacks.sample_grid import SampleGrid

__all__ = ["ExportModel", "FiniteLoss", "SampleGrid"]
