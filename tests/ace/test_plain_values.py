"""What goes into YAML and JSON files."""

import json
import math
from pathlib import Path

import pytest

from ace.plain_values import digest, flatten, plain, write_json


def test_plain_values_are_what_yaml_gives_back():
    given = {1: (Path("a/b"), {"c": None}), "d": True}
    assert plain(given, "it") == {"1": ["a/b", {"c": None}], "d": True}


def test_what_is_no_plain_value_is_named_by_its_place():
    with pytest.raises(TypeError, match=r"it\.a\[1\] must be a plain value to go into config.yaml, got set"):
        plain({"a": [1, {2}]}, "it")


def test_flatten_gives_dotted_keys():
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_a_digest_does_not_depend_on_the_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_json_holds_null_for_what_is_not_finite(tmp_path):
    path = write_json(tmp_path / "it.json", {"a": [math.nan, math.inf, 1.5], "b": "text"})
    assert json.loads(path.read_text()) == {"a": [None, None, 1.5], "b": "text"}
