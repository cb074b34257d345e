from pathlib import Path

from ace.run_store import RunStore
from lit_modules.closing_summary import print_summary
from lit_modules.metric_table import WIDTH

RATE = {"value": 0.5, "n": 12, "subset": "attempted", "interval": (0.2, 0.8), "convention": "as saved"}
DIRECTIONS = {f"{name} -> b": {"n": 1, "flip_rate": 1.0} for name in "cdefghijkl"}


def summary(tmp_path, capsys, **metrics):
    store = RunStore.create(tmp_path / "my run", {}, {})
    given = {"n": 12, "metrics": {"flip_rate": RATE}, "directions": {}, "status": {"flipped": 6}} | metrics
    print_summary(store, given, [Path("x/report.html")])
    text = capsys.readouterr().out
    assert not {"\r", "\x1b", "\t"} & set(text)
    for line in text.splitlines():
        assert line[WIDTH - 1].isalpha(), "names end in one column"
        assert line[WIDTH : WIDTH + 2] == "  "
    return [line.split() for line in text.splitlines()]


def test_it_ends_with_the_files_and_the_next_command(tmp_path, capsys):
    lines = summary(tmp_path, capsys)
    assert lines[1] == ["flipped", "6", "images"]
    assert " ".join(lines[-3]) == f"run folder {tmp_path}/my run"
    assert " ".join(lines[-2]) == "report x/report.html"
    assert " ".join(lines[-1]) == f"next python explain.py evaluate '{tmp_path}/my run'"


def test_causes_are_counted_and_shortened(tmp_path, capsys):
    reasons = {f"failed: reason {index}": 10 - index for index in range(7)}
    status = reasons | {"skipped: already\nso " + "x" * 200: 1, "not_flipped": 1}
    lines = [" ".join(line) for line in summary(tmp_path, capsys, status=status)]
    assert lines[1:7] == [
        *(f"failed {10 - index} images: reason {index}" for index in range(5)),
        "failed 9 images: other reasons, see records.csv",
    ]
    assert lines[7].startswith("skipped 1 image: already so xxx")
    assert lines[7].endswith("x...")
    assert len(lines[7]) < 120
    assert lines[8] == "not_flipped 1 image"
    assert "failed images are not tried again in this folder, but in another --output_dir" in lines


def test_questions_have_their_flip_rates_the_most_frequent_first(tmp_path, capsys):
    lines = summary(tmp_path, capsys, directions=DIRECTIONS | {"z -> a": {"n": 8, "flip_rate": 0.25}})
    shown = [" ".join(line) for line in lines[2:-3]]
    assert shown[:2] == ["flipped 25% of 8, z -> a", "flipped 100% of 1, c -> b"]
    assert (len(shown), shown[-1]) == (9, "flipped 3 other pairs, see metrics.json")


def test_a_single_question_is_named_too(tmp_path, capsys):
    lines = summary(tmp_path, capsys, directions={"4 -> 9": {"n": 12, "flip_rate": 0.5}})
    assert " ".join(lines[2]) == "flipped 50% of 12, 4 -> 9"


def test_where_nothing_was_attempted_there_is_nothing_to_evaluate(tmp_path, capsys):
    lines = summary(tmp_path, capsys, metrics={}, status={"skipped: why": 3})
    assert lines[0] == ["skipped", "3", "images:", "why"]
    assert lines[-1][0] == "report"
