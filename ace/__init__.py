"""ACE, adversarial counterfactual visual explanations: the method, without any training framework."""

import os

# Before MKL's first product: else the rounding of a batch's rows depends on where in memory each of them lies.
os.environ.setdefault("MKL_CBWR", "AUTO")

from ace.attacks import PGD, Attack, CarliniWagner, GradientDescent, ProximalGradient, Stop
from ace.decision import AttributeDecision, BinaryDecision, ClassDecision, Decision
from ace.diffusion_filter import DiffusionFilter
from ace.explainer import CounterfactualExplainer
from ace.explanation import Explanation
from ace.objective import Distance
from ace.refinement import Refinement
from ace.targets import CorrectMistakes, OtherSide, Pair, RunnerUp, TargetPolicy, ToClass, Untargeted

__all__ = [
    "PGD",
    "Attack",
    "AttributeDecision",
    "BinaryDecision",
    "CarliniWagner",
    "ClassDecision",
    "CorrectMistakes",
    "CounterfactualExplainer",
    "Decision",
    "DiffusionFilter",
    "Distance",
    "Explanation",
    "GradientDescent",
    "OtherSide",
    "Pair",
    "ProximalGradient",
    "Refinement",
    "RunnerUp",
    "Stop",
    "TargetPolicy",
    "ToClass",
    "Untargeted",
]
