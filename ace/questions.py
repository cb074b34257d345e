"""What is asked about each image: the decision that it should be turned into, or why it is left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ace.decision import Decision
from ace.explanation import Explanation
from ace.inputs import known_labels
from ace.slots import Query
from ace.targets import TargetPolicy


def ask(
    images: Tensor,
    ids: Sequence[str],
    logits: Tensor,
    decision: Decision,
    policy: TargetPolicy,
    targets: Tensor | None = None,
    labels: Tensor | None = None,
    allowed: Tensor | None = None,
) -> list[Query | Explanation]:
    """Give every image its target.

    Args:
        images: shape (N, C, H, W), in [0, 1].
        ids: their identities.
        logits: the classifier's outputs for them.
        decision: how these are read.
        policy: chooses the targets where none are given.
        targets, labels, allowed: as in `CounterfactualExplainer.explain`.

    Returns:
        For each image a query for the attack, or its outcome if it is skipped or cannot be explained.
    """
    scores, predictions = decision.scores(logits).cpu(), decision.prediction(logits).tolist()
    known = known_labels(labels, decision, len(images))
    if targets is None:
        goals = [policy.choose(*row) for row in zip(scores, predictions, known, strict=True)]
    else:
        reached = decision.flipped(logits, targets.to(logits.device)).tolist()
        given = zip(targets.tolist(), reached, strict=True)
        goals = ["already decided as the target" if done else target for target, done in given]
    classes = torch.tensor([0 if isinstance(goal, str) else goal for goal in goals], device=logits.device)
    p_before, finite = decision.probability(logits, classes).tolist(), scores.isfinite().all(1).tolist()
    asked: list[Query | Explanation] = []
    for row, goal in enumerate(goals):
        facts = {"prediction": predictions[row], "label": known[row]}
        if not finite[row]:
            asked.append(Explanation(ids[row], images[row], "failed: the classifier's output is not finite"))
        elif isinstance(goal, str):
            asked.append(Explanation(ids[row], images[row], f"skipped: {goal}", **facts))
        else:
            region = None if allowed is None else allowed[row].to(images.device).clone()
            image = images[row].clone()  # while one waits, it should not keep its whole batch in memory
            asked.append(Query(ids[row], image, goal, p_before=p_before[row], allowed=region, **facts))
    return asked
