"""Wiring of ``explain.py evaluate``: the networks that judge a run, from their files and the run's configuration."""

from __future__ import annotations

import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ace.decision import AwayFrom, Decision, decision_for
from ace.judges import Judges
from ace.metrics.oracle import query_correlations
from ace.models.encoders import load_encoder
from ace.models.foreign import ForeignClassifier, load_classifier
from ace.models.normalised import NormalisedClassifier
from ace.run_store import RunStore
from datamodules.base import ImageDataModule
from lit_modules.cli import sentence

SECOND = "second_classifier"
ROLES = {"vggface2": "faces", "simsiam": "scenes"}


def load_judges(networks: dict[str, str | None], **options: Any) -> Judges:
    """Load the networks; one whose file is missing is reported, and its metrics are left out.

    Args:
        networks: paths by name, those of `ace.models.encoders.load_encoder` and ``second_classifier``.
        options: further fields of `Judges`.

    Raises:
        ValueError: an unknown name, a damaged file, or an option out of range.
    """
    judges = Judges(device="cuda" if torch.cuda.is_available() else "cpu", **options)
    for name, path in networks.items():
        with _left_out(name, FileNotFoundError):
            _add(judges, name, path)
    return judges


def judges_of_run(judges: Judges, store: RunStore) -> Judges:
    """The judges, with what the run knows: classifier, decision and data. What is not there any more is reported."""
    judges, model = replace(judges), store.config.get("model")
    if model is None:
        return judges
    query = None if model["query"] is None else store.class_name(1)  # by name: indices are one classifier's own
    with _left_out("COUT", OSError, ValueError):
        classifier = _unchanged_classifier(store)
        judges.decision = _decision(classifier, query, store)
        judges.classifier = classifier.to(judges.device)
    if judges.second is not None:
        with _left_out(SECOND, ValueError):
            judges.second_decision = _decision(judges.second, query, store)
    if query is not None:
        judges.query = judges.attributes.index(query) if query in judges.attributes else None
        with _left_out("the run's data, for change_in_region and cd,", OSError, ValueError, TypeError, ArgumentError):
            _add_data(judges, store, query)
    return judges


def _add(judges: Judges, name: str, path: str | None) -> None:
    if name == SECOND:
        judges.second = load_classifier(path).to(judges.device)
        return
    network = load_encoder(name, path).to(judges.device)
    if name.startswith("oracle"):
        judges.oracle = lambda images: network(images) - 0.5  # an attribute is there from a probability of one half
        judges.attributes = network.attributes
    elif name in ROLES:
        setattr(judges, ROLES[name], network)
    elif "lpips" in name:
        judges.distances[name] = network
    else:
        judges.encoders[name] = network


def _unchanged_classifier(store: RunStore) -> NormalisedClassifier:
    """The classifier that the run explained.

    Raises:
        FileNotFoundError: it is not there any more.
        ValueError: it is damaged, or another one is in its place.
    """
    source = store.config["model"]["classifier"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--classifier", type=ForeignClassifier | str)
    classifier = load_classifier(parser.instantiate_classes(parser.parse_object({"classifier": source})).classifier)
    if classifier.identity != store.settings["weights"]["classifier"]:
        raise ValueError(f"the classifier at {source!r} has changed since the run was made: restore it")
    return classifier


def _decision(classifier: NormalisedClassifier, query: str | None, store: RunStore) -> Decision:
    """What the run asked, of this classifier.

    Raises:
        ValueError: it decides something else.
    """
    decision, names = decision_for(classifier, query), store.settings["decision"]
    if decision.class_names != names["class_names"]:
        raise ValueError(f"it decides between {decision.class_names}, the run was about {names['class_names']}")
    return AwayFrom(decision) if names["target_names"] != names["class_names"] else decision


def _add_data(judges: Judges, store: RunStore, query: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": store.config["data"]})).data
    explained, trained_on = data.dataset(data.predict_split), data.dataset("train")
    if hasattr(explained, "query_region") and query in data.class_names:
        judges.region = lambda image_id: explained.query_region(image_id, query)
    labels = getattr(trained_on, "labels", None)
    if labels is not None and judges.query is not None and list(data.class_names) == list(judges.attributes):
        judges.correlations = query_correlations(torch.tensor(labels), judges.query)


@contextmanager
def _left_out(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Report what is missing, and go on without it."""
    try:
        yield
    except errors as error:
        warnings.warn(f"{what} is left out: {sentence(error)}", stacklevel=3)
