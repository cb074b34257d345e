"""Target policies: which decision each image should be turned into."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ace.decision import Decision


class TargetPolicy(ABC):
    """Chooses the target class of every image, or says why an image is left out."""

    def check(self, decision: Decision) -> None:
        """Raise a `ValueError` if the policy does not fit the decision, before anything is computed."""

    @abstractmethod
    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        """The target of one image, or the reason to skip it.

        Args:
            scores: class scores, shape (K,).
            prediction: the decided class.
            label: the true class, if known.
        """


def _check_class(index: int, decision: Decision) -> None:
    if not 0 <= index < len(decision.class_names):
        known = ", ".join(f"{i}: {name}" for i, name in enumerate(decision.class_names))
        raise ValueError(f"class {index} does not exist, choose one of {known}")


class OtherSide(TargetPolicy):
    """The other one of two classes, in both directions."""

    def check(self, decision: Decision) -> None:
        if len(decision.class_names) != 2:
            raise ValueError(
                f"{len(decision.class_names)} classes have no single other side: "
                "use ToClass, Pair, RunnerUp or Untargeted"
            )

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        return 1 - prediction


class ToClass(TargetPolicy):
    """One class for all; images already decided so are skipped."""

    def __init__(self, target: int) -> None:
        self.target = target

    def check(self, decision: Decision) -> None:
        _check_class(self.target, decision)

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        return "already decided as the target" if prediction == self.target else self.target


class Pair(TargetPolicy):
    """From the class ``source`` to ``target``; ``both`` adds the way back. Other decisions are skipped."""

    def __init__(self, source: int, target: int, both: bool = False) -> None:
        if source == target:
            raise ValueError(f"source and target are the same class, {source}")
        self.ways = {source: target, target: source} if both else {source: target}

    def check(self, decision: Decision) -> None:
        for source, target in self.ways.items():
            _check_class(source, decision)
            _check_class(target, decision)

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        return self.ways.get(prediction, "decided as a class outside the pair")


class RunnerUp(TargetPolicy):
    """The class with the second highest score."""

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        first, second = scores.topk(2).indices.tolist()
        return second if first == prediction else first


class Untargeted(TargetPolicy):
    """Any class but the decided one: the explainer reads the target as the class to leave (`AwayFrom`)."""

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        return prediction


class CorrectMistakes(TargetPolicy):
    """Misclassified images go to their true class, the others follow ``policy``: what the published code does."""

    def __init__(self, policy: TargetPolicy) -> None:
        if isinstance(policy, Untargeted):
            raise ValueError("CorrectMistakes needs a policy with targets, not Untargeted")
        self.policy = policy

    def check(self, decision: Decision) -> None:
        self.policy.check(decision)

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        if label is None:
            raise ValueError("CorrectMistakes needs the true labels of the images")
        return label if prediction != label else self.policy.choose(scores, prediction, label)
