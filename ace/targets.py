"""Target policies: which decision each image should be turned into."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ace.decision import Decision, place_of


class TargetPolicy(ABC):
    """Chooses the target class of every image, or says why an image is left out."""

    def check(self, decision: Decision) -> None:
        """Look up classes that are given by name; before anything else is asked of the policy.

        Raises:
            ValueError: the policy does not fit the decision.
        """

    @abstractmethod
    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        """The target of one image, or the reason to skip it.

        Args:
            scores: class scores, shape (K,).
            prediction: the decided class.
            label: the true class, if known.
        """


def _class_index(wanted: int | str, decision: Decision) -> int:
    index = place_of(wanted, decision.class_names)
    if index is None:
        known = ", ".join(f"{i}: {name}" for i, name in enumerate(decision.class_names))
        raise ValueError(f"class {wanted} does not exist, choose one of {known}")
    return index


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
    """One class for all; images already decided so are skipped.

    Args:
        target: the class, by name or index; a name that is a number wins over an index.
    """

    def __init__(self, target: int | str) -> None:
        self.wanted = self.target = target

    def check(self, decision: Decision) -> None:
        self.target = _class_index(self.wanted, decision)

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        return "already decided as the target" if prediction == self.target else self.target


class Pair(TargetPolicy):
    """From one class to another; images of further classes are skipped.

    Args:
        source: the class of the images that are explained, by name or index; a name that is a number wins.
        target: the class that they should be turned into, in the same way.
        both: add the way back.

    Raises:
        ValueError: source and target are the same class.
    """

    def __init__(self, source: int | str, target: int | str, both: bool = False) -> None:
        if source == target:
            raise ValueError(f"source and target are the same class, {source}")
        self.source, self.target, self.both = source, target, both
        self.ways = self._ways(source, target)

    def _ways(self, source: int | str, target: int | str) -> dict[int | str, int | str]:
        return {source: target, target: source} if self.both else {source: target}

    def check(self, decision: Decision) -> None:
        source, target = _class_index(self.source, decision), _class_index(self.target, decision)
        if source == target:
            raise ValueError(f"source {self.source} and target {self.target} are the same class")
        self.ways = self._ways(source, target)

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
    """Misclassified images go to their true class, the others follow a policy: what the published code does.

    Args:
        policy: for the images that are decided correctly.

    Raises:
        ValueError: the policy is `Untargeted`.
    """

    def __init__(self, policy: TargetPolicy) -> None:
        if isinstance(policy, Untargeted):
            raise ValueError("CorrectMistakes needs a policy with targets, not Untargeted")
        self.policy = policy

    def check(self, decision: Decision) -> None:
        self.policy.check(decision)

    def choose(self, scores: Tensor, prediction: int, label: int | None) -> int | str:
        if label is None:
            return "the true label is not known, which CorrectMistakes needs"
        return label if prediction != label else self.policy.choose(scores, prediction, label)
