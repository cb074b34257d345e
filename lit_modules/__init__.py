"""LightningModules: one for each job of the two scripts."""

from lit_modules.classifier import LitClassifier
from lit_modules.counterfactual import LitCounterfactual
from lit_modules.ddpm import LitDDPM

__all__ = ["LitClassifier", "LitCounterfactual", "LitDDPM"]
