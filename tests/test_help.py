"""What ``--help`` tells of the classes that a configuration names."""

import inspect

import pytest
from jsonargparse import ArgumentParser

import ace
import callbacks
import datamodules
import lit_modules

CLASSES = [
    getattr(module, name)
    for module in (ace, callbacks, datamodules, lit_modules)
    for name in module.__all__
    if inspect.isclass(getattr(module, name)) and not inspect.isabstract(getattr(module, name))
]
NOT_CONFIGURED = (ace.AttributeDecision, ace.BinaryDecision, ace.ClassDecision, ace.Explanation)


@pytest.mark.parametrize("configured", [c for c in CLASSES if c not in NOT_CONFIGURED], ids=lambda c: c.__name__)
def test_every_argument_has_a_help_text_of_its_own(configured):
    parser = ArgumentParser()
    parser.add_class_arguments(configured, "it", fail_untyped=False)
    texts = {action.dest: action.help or "" for action in parser._actions if action.dest.startswith("it.")}
    blank = [name for name, text in texts.items() if len(text.partition(" (")[0]) < 8]
    elsewhere = [name for name, text in texts.items() if text.lower().startswith("see ")]
    assert not blank + elsewhere
