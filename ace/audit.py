"""What a classifier goes by, shortcuts included: the attributes that its counterfactuals change, by an oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ace.judges import FLIPPED, Judges
from ace.measurement import Measurement, bootstrap, measure_correlations, wilson
from ace.metrics.oracle import attribute_changes, query_correlations
from ace.results import results_of_run
from ace.run_store import RunStore

THRESHOLD, MINIMUM = 0.15, 3  # of the counterfactuals: a share, and a number, as one of one makes a high share
MARGIN, TIED = 0.2, 0.5  # between correlations; from which on the data tie an attribute to the query


@dataclass(frozen=True)
class Change:
    """What became of an attribute in the counterfactuals of a direction.

    Attributes:
        appeared, went: number of counterfactuals in which the oracle sees it come, or go.
        share: of the counterfactuals, in which it changed either way.
        interval: 95 % one of the share (Wilson).
        without_query: in how many it changed while the query did not; None without a query.
    """

    appeared: int
    went: int
    share: float
    interval: tuple[float, float]
    without_query: int | None


@dataclass(frozen=True)
class Direction:
    """The counterfactuals of one question, "prediction -> target".

    Attributes:
        images: number of explained images.
        n: of those that flipped, which are audited.
        changes: by attribute: the query first, changed or not, then those that changed, the most frequent first.
        suspects: attributes other than the query that change more often than the threshold, see `audit`.
        verdict: what that means, in a sentence.
    """

    images: int
    n: int
    changes: dict[str, Change]
    suspects: list[str]
    verdict: str


@dataclass(frozen=True)
class Correlation:
    """What an attribute goes with, from -1 to 1; None where it is unknown, or what it would go with never varies.

    Attributes:
        originals: the attribute with the decision, 1 for the second of two classes, in all explained originals.
        interval: 95 % one of that (bootstrap).
        changes: its change with the change of the decision, in the counterfactuals that flipped.
        with_query: its change with that of the query, both as the oracle sees them: what the CD compares to the data.
        in_data: the attribute with the query, in the labels of the run's data (split train): the classifier may have
            been trained on others.
    """

    originals: float | None
    interval: tuple[float, float] | None
    changes: float | None
    with_query: float | None
    in_data: float | None


@dataclass(frozen=True)
class Audit:
    """What the counterfactuals of a run change, and with what its decisions go.

    Attributes:
        query: the attribute in question; None if there is none that the oracle knows.
        threshold: see `audit`.
        images: number of explained images.
        n: of those that flipped.
        directions: by name, the one of most images first.
        correlations: by attribute, over all directions: the query first, then the strongest.
        suspects: attributes other than the query that correlate clearly more with the decision than in the data.
        verdict: what that means, in a sentence; None where the data are unknown.
        cd: correlation difference to the data; None where they are unknown.
    """

    query: str | None
    threshold: float
    images: int
    n: int
    directions: dict[str, Direction]
    correlations: dict[str, Correlation]
    suspects: list[str]
    verdict: str | None
    cd: Measurement | None


def audit(store: RunStore, judges: Judges, threshold: float = THRESHOLD) -> Audit:
    """Audit the counterfactuals of a run that flipped; also written to ``audit.json``.

    Args:
        store: the run.
        judges: an oracle, its attributes, and where they are known the query and its correlations in the data.
        threshold: share of a direction's counterfactuals, range [0, 1); an attribute that changes in more of them, by
            all of its interval and at least three times, is a suspect.

    Raises:
        ValueError: the threshold is out of range, or no image of the run is explained.
        WriteError: the file cannot be written.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a share from 0 to below 1, got {threshold}")
    results = results_of_run(store)
    if not results:
        raise ValueError(f"{store.folder} holds no explained image to audit: run `generate` first")
    asked = {record.id: store.direction(record) for record in store.records()}
    names = [asked[result.id] for result in results]
    flipped = torch.tensor([result.flipped for result in results])
    before, after = judges.attribute_logits(results)
    changes = attribute_changes(before, after)
    query = None if judges.query is None else judges.attributes[judges.query]
    directions = {}
    for name, images in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])):
        chosen = flipped & torch.tensor([other == name for other in names])
        directions[name] = audit_direction(changes[chosen], judges.attributes, images, query, threshold)
    two = len(store.settings.get("decision", {}).get("class_names", ())) == 2
    decisions = torch.tensor([float(result.prediction) for result in results]) if two else None
    correlations = audit_correlations(before > 0, changes, flipped, decisions, judges)
    suspects, verdict = _compared_to_data(correlations, query, len(results))
    known = judges.correlations is not None and flipped.any()
    cd = measure_correlations(changes[flipped], judges.correlations, judges.query, FLIPPED) if known else None
    n = int(flipped.sum())
    found = Audit(query, threshold, len(results), n, directions, correlations, suspects, verdict, cd)
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
    suspects = [name for name, change in found.items() if name != query and _often(change, threshold)]
    return Direction(images, n, found, suspects, _verdict(found, suspects, n, query, threshold))


def audit_correlations(
    present: Tensor, changes: Tensor, flipped: Tensor, decisions: Tensor | None, judges: Judges
) -> dict[str, Correlation]:
    """What the attributes go with; empty where there is nothing.

    Args:
        present: whether each original has each attribute, shape (N, A).
        changes: `ace.metrics.oracle.attribute_changes` of its counterfactual, shape (N, A).
        flipped: whether that flipped, shape (N,).
        decisions: class of the original, 0 or 1, shape (N,); None if there are not two classes.
        judges: names of the attributes, and where they are known the query and its correlations in the data.
    """
    count, moves = present.shape[1], changes[flipped]
    originals = intervals = changed = with_query = in_data = [None] * count
    if decisions is not None:
        originals, changed = _correlations(present, decisions), _correlations(moves, 1 - 2 * decisions[flipped])
    if originals[0] is not None:
        both = torch.cat([present, decisions[:, None]], dim=1)
        intervals = zip(*bootstrap(both, lambda rows: query_correlations(rows, count)[:-1]), strict=True)
    if judges.query is not None:
        with_query = _correlations(moves, moves[:, judges.query])
    if judges.correlations is not None:
        in_data = judges.correlations.tolist()
    table = zip(judges.attributes, originals, intervals, changed, with_query, in_data, strict=True)
    rows = {name: Correlation(*row) for name, *row in table if set(row) != {None}}
    query = None if judges.query is None else judges.attributes[judges.query]
    return dict(sorted(rows.items(), key=lambda item: (item[0] != query, -_strength(item[1]))))


def _often(change: Change, threshold: float) -> bool:
    return change.interval[0] > threshold and change.appeared + change.went >= MINIMUM


def _correlations(columns: Tensor, other: Tensor) -> list[float | None]:
    """Of every column, shape (N, A), with another one; None for all where that never varies."""
    if not len(other) or (other == other[0]).all():
        return [None] * columns.shape[1]
    return query_correlations(torch.cat([columns, other[:, None]], dim=1), columns.shape[1])[:-1].tolist()


def _strength(row: Correlation) -> float:
    return max(abs(value or 0) for value in (row.originals, row.changes, row.in_data))


def _clearly_more(row: Correlation) -> bool:
    """Whether the attribute correlates with the decision, in either sense, clearly more than with the query."""
    low, high = row.interval
    return low > max(row.in_data, 0) + MARGIN or high < min(row.in_data, 0) - MARGIN


def _compared_to_data(rows: dict[str, Correlation], query: str | None, images: int) -> tuple[list[str], str | None]:
    """The suspects by their correlations, and the verdict."""
    if query not in rows or rows[query].interval is None or rows[query].in_data is None:
        return [], None
    others = {name: row for name, row in rows.items() if name != query}
    suspects = [name for name, row in others.items() if _clearly_more(row)]
    shown = {name: "{:.2f} [{:.2f}, {:.2f}]".format(row.originals, *row.interval) for name, row in rows.items()}
    told = [f"with '{name}' by {shown[name]} (in the data: {rows[name].in_data:z.2f})" for name in suspects]
    listing = ", ".join(told) or "with no other attribute clearly more than in the data"
    tied = [f"'{name}' ({row.in_data:.2f})" for name, row in others.items() if abs(row.in_data) >= TIED]
    return suspects, (
        f"in {_counted(images, 'original')} the decision correlates {listing}, with '{query}' itself by {shown[query]}"
        + (f": the classifier may use {_quoted(suspects)}" if suspects else "")
        + (f"; the data tie {', '.join(tied)} to '{query}'" if tied else "")
    )


def _verdict(changes: dict[str, Change], suspects: list[str], n: int, query: str | None, threshold: float) -> str:
    """What the changes of n counterfactuals say of the classifier."""
    shown = {name: "{:.0%} [{:.0%}, {:.0%}]".format(change.share, *change.interval) for name, change in changes.items()}
    counterfactuals = _counted(n, "counterfactual")
    itself = "" if query is None else f", '{query}' itself in {shown[query]}"
    if suspects:
        first, *rest = suspects
        listing = ", ".join([f"'{first}' changes in {shown[first]}", *(f"'{name}' in {shown[name]}" for name in rest)])
        return f"{listing} of {counterfactuals}{itself}: the classifier may use {_quoted(suspects)}"
    others = "no attribute" if query is None else "no other attribute"
    seen = query is None or changes[query].interval[1] >= 0.5
    unseen = "" if seen else ": the oracle does not see what flips the classifier"
    return f"{others} changes in clearly more than {threshold:.0%} of {counterfactuals}{itself}{unseen}"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
