from types import SimpleNamespace

import pytest
import torch

from callbacks import ExportModel


class Module:
    def __init__(self):
        self.exports = []

    def export(self, folder, dtype):
        self.exports.append((str(folder), dtype))


def trainer(**settings):
    return SimpleNamespace(**({"is_global_zero": True, "fast_dev_run": False} | settings))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_module_is_exported_once_in_the_precision_asked_for(dtype, tmp_path):
    module = Module()
    ExportModel(str(tmp_path / "weights"), dtype).on_fit_end(trainer(), module)
    assert module.exports == [(str(tmp_path / "weights"), getattr(torch, dtype))]


@pytest.mark.parametrize("settings", [{"is_global_zero": False}, {"fast_dev_run": 1}])
def test_other_ranks_and_trial_runs_export_nothing(settings, tmp_path):
    module = Module()
    ExportModel(str(tmp_path)).on_fit_end(trainer(**settings), module)
    assert module.exports == []
