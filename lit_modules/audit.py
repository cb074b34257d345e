"""``explain.py audit``: which attributes the counterfactuals of a run change, in the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ace.audit import THRESHOLD, Audit, Direction
from ace.audit import audit as audit_store
from ace.judges import Judges
from ace.report import write_report
from ace.run_store import RunStore
from lit_modules.cli import one_sentence
from lit_modules.closing_summary import PAIRS, print_paths
from lit_modules.evaluation import judges_of_data, load_judges
from lit_modules.metric_table import WIDTH, print_line

ROWS, CELL = 6, 15  # attributes in a table: audit.json holds them all; characters in its columns
CHANGES = ("changed", "95% interval", "appeared", "went", "without query")
CORRELATIONS = ("originals", "95% interval", "changes", "with query", "in the data")
LEGEND = """
all directions: correlation of an attribute with the decision, in the originals; of its change with the decision's and
with the query's; and of the attribute with the query, in the labels of the run's data (split train)"""


def audit(
    run: str, networks: dict[str, str | None] | None = None, threshold: float = THRESHOLD, batch_size: int = 32
) -> None:
    """Tell which attributes the counterfactuals of a run change: prints them and writes audit.json and report.html.

    Args:
        run: folder of the run.
        networks: an oracle of attributes and its file, as for ``evaluate``; networks that judge otherwise may be there
            too, and are not read.
        threshold: share of the counterfactuals; an attribute that changes in clearly more of them is named in the
            verdict.
        batch_size: images at a time.
    """
    store = one_sentence(partial(RunStore.open, run))
    judges = one_sentence(lambda: judges_of_data(_load_oracle(networks or {}, batch_size), store))
    found = one_sentence(lambda: audit_store(store, judges, threshold))
    for name, direction in list(found.directions.items())[:PAIRS]:
        _print_direction(name, direction, found.query)
    if (left := len(found.directions) - PAIRS) > 0:
        print(f"\n{left} other directions in audit.json")
    if found.correlations:
        _print_correlations(found)
    print()
    print_paths(store, [store.folder / "audit.json", one_sentence(partial(write_report, store))])


def _load_oracle(networks: dict[str, str | None], batch_size: int) -> Judges:
    oracles = {name: path for name, path in networks.items() if name.startswith("oracle")}
    judges = load_judges(oracles, batch_size=batch_size)
    if judges.oracle is None:
        raise ValueError(
            "an audit needs an oracle of attributes: give --networks.oracle_classifier FOLDER, a multi-label "
            "classifier that was trained apart from the one that was explained"
        )
    return judges


def _print_direction(name: str, direction: Direction, query: str | None) -> None:
    print(f"\n{name}: {direction.n} counterfactuals of {direction.images} images")
    if direction.changes:
        _print_row("", CHANGES[: 4 if query is None else 5])
    for attribute, change in list(direction.changes.items())[:ROWS]:
        interval = "[{:.0%}, {:.0%}]".format(*change.interval)
        alone = [] if query is None else [change.without_query]
        _print_row(_marked(attribute, query), [f"{change.share:.0%}", interval, change.appeared, change.went, *alone])
    _print_rest(len(direction.changes))
    print_line("verdict", direction.verdict)


def _print_correlations(found: Audit) -> None:
    print(LEGEND)
    _print_row("", CORRELATIONS)
    for attribute, row in list(found.correlations.items())[:ROWS]:
        interval = "-" if row.interval is None else "[{:.2f}, {:.2f}]".format(*row.interval)
        changes, with_query, in_data = map(_number, (row.changes, row.with_query, row.in_data))
        cells = [_number(row.originals), interval, changes, with_query, in_data]
        _print_row(_marked(attribute, found.query), cells)
    _print_rest(len(found.correlations))
    if found.cd is not None:
        meaning = "sum over all attributes of |with query - in the data|"
        print_line("correlation difference", f"{found.cd.value:.3g}: {meaning}")
    if found.verdict is not None:
        print_line("verdict", found.verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _print_row(name: str, cells: Iterable[object]) -> None:
    print(f"{name:>{WIDTH}}", *(f"{cell!s:>{CELL}}" for cell in cells), sep="")


def _print_rest(count: int) -> None:
    if count > ROWS:
        print_line("", f"{count - ROWS} more in audit.json")


def _marked(attribute: str, query: str | None) -> str:
    return f"{attribute} (query)" if attribute == query else attribute
