"""What "the decision" of a classifier is: one logit, one attribute of many, or one of K classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from ace.models.normalised import NormalisedClassifier


class Decision(ABC):
    """Reads a classifier's logits. Every tensor has one entry an image, shape (N,), unless said otherwise.

    Attributes:
        class_names: names of the classes decided between.
        target_names: what each class means as a target.
    """

    class_names: list[str]

    @property
    def target_names(self) -> list[str]:
        return self.class_names

    @abstractmethod
    def check(self, logits: Tensor) -> None:
        """Raise a `ValueError` if logits of this shape cannot be read."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Class scores, shape (N, K), whose softmax gives the class probabilities."""

    def label(self, label: Tensor) -> Tensor:
        """The true class of each image, shape (N,), from the labels of samples.

        Raises:
            ValueError: labels of another shape.
        """
        if label.ndim != 1:
            raise ValueError(f"labels of classes have shape (N,), got {tuple(label.shape)}")
        return label.long()

    def prediction(self, logits: Tensor) -> Tensor:
        """Index of the decided class."""
        return self.scores(logits).argmax(1)

    def probability(self, logits: Tensor, target: Tensor) -> Tensor:
        """Probability that the classifier gives to ``target``."""
        return self.scores(logits).softmax(1).gather(1, target[:, None])[:, 0]

    def flipped(self, logits: Tensor, target: Tensor) -> Tensor:
        """Whether the decision is ``target``."""
        return self.prediction(logits) == target

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Class loss of each image, never averaged over the batch."""
        return F.cross_entropy(self.scores(logits), target, reduction="none")

    def margin(self, logits: Tensor, target: Tensor) -> Tensor:
        """Score of ``target`` less the highest score of the others (Carlini and Wagner 2017)."""
        scores = self.scores(logits)
        chosen = F.one_hot(target, scores.shape[1]).bool()
        return scores.gather(1, target[:, None])[:, 0] - scores.masked_fill(chosen, -torch.inf).amax(1)


class BinaryDecision(Decision):
    """One logit, shape (N,) or (N, 1): class 1 where it is positive."""

    def __init__(self, class_names: tuple[str, str] = ("0", "1")) -> None:
        self.class_names = list(class_names)

    def check(self, logits: Tensor) -> None:
        if logits.ndim > 2 or (logits.ndim == 2 and logits.shape[1] != 1):
            raise ValueError(
                f"a binary decision needs one logit an image, the classifier gives {tuple(logits.shape)}: "
                "name the attribute to query, or decide between classes"
            )

    def logit(self, logits: Tensor) -> Tensor:
        """The deciding logit."""
        return logits.flatten()

    def scores(self, logits: Tensor) -> Tensor:
        logit = self.logit(logits)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)

    def prediction(self, logits: Tensor) -> Tensor:
        return (self.logit(logits) > 0).long()

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logit(logits), target.float(), reduction="none")


class AttributeDecision(BinaryDecision):
    """Attribute ``query`` of A independent ones, logits of shape (N, A), labels of shape (N, A)."""

    def __init__(self, query: int, name: str | None = None) -> None:
        if query < 0:
            raise ValueError(f"query must be the index of an attribute, 0 or more, got {query}")
        name = name or f"attribute {query}"
        super().__init__((f"not {name}", name))
        self.query = query

    def check(self, logits: Tensor) -> None:
        if logits.ndim != 2 or self.query >= logits.shape[1]:
            raise ValueError(
                f"attribute {self.query} is not among the classifier's outputs of shape {tuple(logits.shape)}"
            )

    def logit(self, logits: Tensor) -> Tensor:
        return logits[:, self.query]

    def label(self, label: Tensor) -> Tensor:
        if label.ndim != 2 or self.query >= label.shape[1]:
            raise ValueError(
                f"labels of attributes have shape (N, A), got {tuple(label.shape)}, to tell attribute {self.query}"
            )
        return label[:, self.query].long()


class ClassDecision(Decision):
    """One of K classes, logits of shape (N, K), K at least 2."""

    def __init__(self, class_names: list[str]) -> None:
        if len(class_names) < 2:
            raise ValueError(f"a decision needs at least two classes, got {class_names}")
        self.class_names = list(class_names)

    def check(self, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[1] != len(self.class_names):
            raise ValueError(
                f"{len(self.class_names)} classes are named, the classifier's outputs have shape {tuple(logits.shape)}"
            )

    def scores(self, logits: Tensor) -> Tensor:
        return logits


class AwayFrom(Decision):
    """The untargeted question on top of another decision: the "target" is the class to leave."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.class_names = decision.class_names

    @property
    def target_names(self) -> list[str]:
        if len(self.class_names) == 2:
            return self.class_names[::-1]
        return [f"not {name}" for name in self.class_names]

    def check(self, logits: Tensor) -> None:
        self.decision.check(logits)

    def scores(self, logits: Tensor) -> Tensor:
        return self.decision.scores(logits)

    def label(self, label: Tensor) -> Tensor:
        return self.decision.label(label)

    def prediction(self, logits: Tensor) -> Tensor:
        return self.decision.prediction(logits)

    def probability(self, logits: Tensor, target: Tensor) -> Tensor:
        return 1 - self.decision.probability(logits, target)

    def flipped(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.decision.prediction(logits) != target

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return -self.decision.cross_entropy(logits, target)

    def margin(self, logits: Tensor, target: Tensor) -> Tensor:
        return -self.decision.margin(logits, target)


def relabel(labels: Tensor, names: Sequence[str], classifier: NormalisedClassifier) -> Tensor | None:
    """The labels of a data set in the classifier's terms: its classes, or attributes, are found by their names.

    Args:
        labels: class indices, shape (N,), or attributes, shape (N, A).
        names: of the data's classes or attributes. If the classifier has none of them but as many, they are taken to
            be its own.
        classifier: whose classes or attributes are meant.

    Returns:
        Labels of the same kind; -1 where the classifier does not know the class, or the data the attribute. None where
        they say nothing about the classifier's.
    """
    if (labels.ndim == 2) != (classifier.task == "multilabel"):
        return None
    known, names = classifier.class_names, list(names)
    if not set(names).intersection(known) and len(names) != len(known):
        return None
    if names == known or not set(names).intersection(known):
        return labels
    if labels.ndim == 2:
        unknown = torch.full_like(labels[:, :1], -1)
        columns = [names.index(name) if name in names else len(names) for name in known]
        return torch.cat([labels, unknown], dim=1)[:, columns]
    classes = [known.index(name) if name in known else -1 for name in names]
    return torch.tensor([*classes, -1], device=labels.device)[labels]  # the last one is for a label of -1


def place_of(wanted: int | str, names: Sequence[str]) -> int | None:
    """Where a class or an attribute stands that is given by name or by index; None if there is none.

    A name wins, of which a command line may make a number: of the classes "1", "2" and "3", 2 is the one called "2",
    though the index 2 would be "3"; of "01" and "02" it is "02". An index counts where no name is that number.
    """
    if str(wanted) in names:
        return names.index(str(wanted))
    if not isinstance(wanted, int):
        return None
    padded = [place for place, name in enumerate(names) if name.isdecimal() and int(name) == wanted]
    return padded[0] if padded else wanted if 0 <= wanted < len(names) else None


def decision_for(classifier: NormalisedClassifier, query: int | str | None) -> Decision:
    """The decision between the classes of a classifier, or on the attribute ``query``.

    Raises:
        ValueError: no attribute has that name or index, see `place_of`, or the query does not fit the classifier's
            task.
    """
    names = classifier.class_names
    known = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    if classifier.task != "multilabel":
        if query is not None:
            raise ValueError(
                f"query {query!r} asks for an attribute, but the classifier decides between classes ({known}): "
                "leave query out, and give the policy a class"
            )
        return BinaryDecision(tuple(names)) if classifier.task == "binary" else ClassDecision(names)
    index = None if query is None else place_of(query, names)
    if index is None:
        raise ValueError(f"unknown query {query!r}: choose one of the classifier's attributes, {known}")
    return AttributeDecision(index, names[index])
