"""Which attributes the counterfactuals of a run change, by an oracle: what the classifier goes by, shortcuts included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ace.judges import FLIPPED, Judges, measure_correlations
from ace.measurement import Measurement, wilson
from ace.metrics.oracle import query_correlations
from ace.results import results_of_run
from ace.run_store import RunStore

THRESHOLD = 0.2


@dataclass(frozen=True)
class Change:
    """What became of an attribute in the counterfactuals of a direction.

    Attributes:
        appeared, went: number of counterfactuals in which the oracle sees it come, or go.
        share: of the counterfactuals, in which it changed either way.
        interval: 95 % one of the share (Wilson).
        query_stayed: in how many it changed while the query did not; None without a query.
    """

    appeared: int
    went: int
    share: float
    interval: tuple[float, float]
    query_stayed: int | None


@dataclass(frozen=True)
class Direction:
    """The counterfactuals of one question, "prediction -> target".

    Attributes:
        images: number of explained images; n: of those that flipped, which are audited.
        changes: by attribute: the query first, changed or not, then those that changed, the most frequent first.
        suspects: attributes other than the query whose interval lies above the threshold.
        verdict: what that means, in a sentence.
    """

    images: int
    n: int
    changes: dict[str, Change]
    suspects: list[str]
    verdict: str


@dataclass(frozen=True)
class Correlations:
    """How an attribute goes with the query, from -1 to 1; None where it is unknown, or one of the two never varies.

    Attributes:
        with_decision: its change with the one of the classifier's decision, 1 towards the second class and -1 towards
            the first.
        with_query: its change with the query's, both as the oracle sees them: what the CD compares.
        in_data: the attribute with the query in the labels of the run's training data.
    """

    with_decision: float | None
    with_query: float | None
    in_data: float | None


@dataclass(frozen=True)
class Audit:
    """What the counterfactuals of a run change.

    Attributes:
        query: the attribute in question, None if the oracle does not know it.
        threshold: share of the counterfactuals beyond which an attribute's change is called a suspect.
        directions: by name.
        correlations: by attribute, over all directions; the query first, then those that differ most from the data.
        cd: correlation difference of the flipped images to the training data; None without labels of theirs.
    """

    query: str | None
    threshold: float
    directions: dict[str, Direction]
    correlations: dict[str, Correlations]
    cd: Measurement | None


def audit(store: RunStore, judges: Judges, threshold: float = THRESHOLD) -> Audit:
    """Audit the counterfactuals of a run that flipped; also written to ``audit.json``.

    Args:
        store: the run.
        judges: with an oracle and the names of its attributes; with a query, the index of the attribute in question.
        threshold: share of the counterfactuals, range [0, 1), beyond which a change makes an attribute a suspect.

    Raises:
        ValueError: the threshold is out of range, or no image of the run is explained.
        WriteError: the file cannot be written.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a share from 0 to below 1, got {threshold}")
    results = results_of_run(store)
    if not results:
        raise ValueError(f"{store.folder} holds no explained image to audit: run `generate` first")
    names = {record.id: store.direction(record) for record in store.records()}
    images = Counter(names[result.id] for result in results)
    flipped = [result for result in results if result.flipped]
    changes = judges.changes(flipped)
    query = None if judges.query is None else judges.attributes[judges.query]
    directions = {}
    for name in sorted(images):
        asked = torch.tensor([names[result.id] == name for result in flipped], dtype=torch.bool)
        directions[name] = audit_direction(changes[asked], judges.attributes, images[name], query, threshold)
    two = len((store.settings.get("decision") or {}).get("class_names", ())) == 2
    steps = torch.tensor([1 - 2 * result.prediction for result in flipped]) if two else None
    correlations = audit_correlations(changes, judges.attributes, steps, query, judges.correlations)
    comparable = flipped and judges.correlations is not None
    cd = measure_correlations(changes, judges.correlations, judges.query, FLIPPED) if comparable else None
    found = Audit(query, threshold, directions, correlations, cd)
    store.write_json("audit.json", asdict(found))
    return found


def audit_direction(
    changes: Tensor, attributes: Sequence[str], images: int, query: str | None = None, threshold: float = THRESHOLD
) -> Direction:
    """Audit the counterfactuals of one direction.

    Args:
        changes: `ace.metrics.oracle.attribute_changes` of those that flipped, shape (N, A).
        attributes: names of the A attributes.
        images: number of explained images, flipped or not.
        query: the attribute in question, if it is one of them.
        threshold: see `audit`.
    """
    if not len(changes):
        return Direction(images, 0, {}, [], f"none of {_counted(images, 'image')} flipped: nothing to audit")
    n, found = len(changes), {}
    stayed = None if query is None else changes[:, attributes.index(query)] == 0
    for name, change in zip(attributes, changes.T, strict=True):
        changed = change != 0
        count = int(changed.sum())
        if count or name == query:
            alone = None if stayed is None else int((changed & stayed).sum())
            moves = int((change > 0).sum()), int((change < 0).sum())
            found[name] = Change(*moves, count / n, wilson(count, n), alone)
    found = dict(sorted(found.items(), key=lambda item: (item[0] != query, -item[1].share)))
    suspects = [name for name, change in found.items() if name != query and change.interval[0] > threshold]
    return Direction(images, n, found, suspects, _verdict(found, suspects, n, query, threshold))


def audit_correlations(
    changes: Tensor, attributes: Sequence[str], steps: Tensor | None, query: str | None, in_data: Tensor | None
) -> dict[str, Correlations]:
    """Correlations of all attributes; none where nothing is known to correlate them with.

    Args:
        changes: `ace.metrics.oracle.attribute_changes` of the flipped counterfactuals, shape (N, A).
        attributes: names of the A attributes.
        steps: change of the decision, 1 or -1, shape (N,); None if there are not two classes.
        query: the attribute in question, if it is one of them.
        in_data: `ace.metrics.oracle.query_correlations` of the training labels, shape (A,).
    """
    moves = None if query is None or not len(changes) else changes[:, attributes.index(query)]
    columns = [
        _correlations(changes, steps, len(attributes)),
        _correlations(changes, moves, len(attributes)),
        [None] * len(attributes) if in_data is None else in_data.tolist(),
    ]
    rows = {name: Correlations(*row) for name, *row in zip(attributes, *columns, strict=True)}
    if all(value is None for column in columns for value in column):
        return {}
    return dict(sorted(rows.items(), key=lambda item: (item[0] != query, -_difference(item[1]))))


def _correlations(changes: Tensor, others: Tensor | None, attributes: int) -> list[float | None]:
    """Of every attribute's changes with other ones, shape (N,); None for all if those are not there or never vary."""
    if others is None or not len(others) or (others == others[0]).all():
        return [None] * attributes
    return query_correlations(torch.cat([changes, others[:, None]], dim=1), attributes)[:-1].tolist()


def _difference(row: Correlations) -> float:
    return abs((row.with_decision or 0) - (row.in_data or 0))


def _verdict(changes: dict[str, Change], suspects: list[str], n: int, query: str | None, threshold: float) -> str:
    """What the changes of n counterfactuals say of the classifier, in a sentence."""
    counterfactuals = _counted(n, "counterfactual")
    itself = "" if query is None else f", '{query}' itself in {share_in_words(changes[query])}"
    if suspects:
        names = ", ".join(f"'{name}'" for name in suspects)
        shares = ", ".join(share_in_words(changes[name]) for name in suspects)
        return f"{names} changes in {shares} of {counterfactuals}{itself}: the classifier may use {names}"
    others = "no attribute" if query is None else f"no attribute other than '{query}'"
    seen = query is None or changes[query].interval[1] >= 0.5
    unseen = "" if seen else ": the oracle does not see what flips the classifier"
    return f"{others} changes in clearly more than {threshold:.0%} of {counterfactuals}{itself}{unseen}"


def share_in_words(change: Change) -> str:
    """A share with its interval, in per cent."""
    return "{:.0%} [{:.0%}, {:.0%}]".format(change.share, *change.interval)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
