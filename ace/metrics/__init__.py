"""The metrics of this field, as `torchmetrics.Metric`s: what `update` takes stands with each of them."""

from ace.metrics.closeness import L1, L2, ChangedArea, Linf, PerceptualDistance
from ace.metrics.cout import COUT
from ace.metrics.diversity import Diversity
from ace.metrics.oracle import MNAC, AttributesChanged, CorrelationDifference
from ace.metrics.realism import FrechetDistance, SplitFrechetDistance
from ace.metrics.similarity import FaceSimilarity, FaceVerificationAccuracy, SimSiamSimilarity
from ace.metrics.validity import BKL, FlipRate, NonAdversarialFlipRate, TargetProbability

__all__ = [
    "BKL",
    "COUT",
    "L1",
    "L2",
    "MNAC",
    "AttributesChanged",
    "ChangedArea",
    "CorrelationDifference",
    "Diversity",
    "FaceSimilarity",
    "FaceVerificationAccuracy",
    "FlipRate",
    "FrechetDistance",
    "Linf",
    "NonAdversarialFlipRate",
    "PerceptualDistance",
    "SimSiamSimilarity",
    "SplitFrechetDistance",
    "TargetProbability",
]
