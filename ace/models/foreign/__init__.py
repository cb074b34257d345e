"""Classifiers that were trained elsewhere."""

from ace.models.foreign.base import ForeignClassifier, load_classifier
from ace.models.foreign.hubs import HuggingFaceClassifier, TimmClassifier
from ace.models.foreign.networks import DecisionDenseNet, ModuleClassifier, TorchvisionClassifier
from ace.models.foreign.programs import ScriptClassifier

__all__ = [
    "DecisionDenseNet",
    "ForeignClassifier",
    "HuggingFaceClassifier",
    "ModuleClassifier",
    "ScriptClassifier",
    "TimmClassifier",
    "TorchvisionClassifier",
    "load_classifier",
]
