"""Lightning callbacks, one job each, and what the loggers need."""

from callbacks.averaging import EMAWithWarmup
from callbacks.data_summary import DataSummary
from callbacks.export_model import ExportModel
from callbacks.filter_check import FilterCheck
from callbacks.finite_loss import FiniteLoss
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.sample_grid import SampleGrid

__all__ = ["DataSummary", "EMAWithWarmup", "ExportModel", "FilterCheck", "FiniteLoss", "LastCheckpoint", "SampleGrid"]
