"""``explain.py evaluate``: networks that judge, from their files and the run's configuration, and what they find."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ace.decision import AwayFrom, Decision, decision_for
from ace.evaluation import evaluate as evaluate_store
from ace.evaluation import evaluate_published, measure_diversity
from ace.judges import Judges, Subsets
from ace.metrics.oracle import query_correlations
from ace.models.encoders import load_encoder
from ace.models.foreign import ForeignClassifier, load_classifier
from ace.models.normalised import NormalisedClassifier
from ace.report import write_report
from ace.run_store import RunStore
from callbacks.log_run import log_metrics
from callbacks.wandb_run import run_loggers
from datamodules.base import ImageDataModule
from lit_modules.cli import INPUT_ERRORS, one_sentence, sentence
from lit_modules.metric_table import print_metrics

SECOND = "second_classifier"
ROLES = {SECOND: "second", "vggface2": "faces", "simsiam": "scenes"}


def evaluate(
    run: str,
    experiment: str | None = None,
    compare: list[str] | None = None,
    networks: dict[str, ForeignClassifier | str | None] | None = None,
    subsets: Subsets = "paper",
    min_images: int | None = None,
    splits: int = 10,
    batch_size: int = 32,
    classifier: str | None = None,
    query: int | str | None = None,
) -> None:
    """Compute the metrics of a run: prints them and writes metrics.json, records.csv, report.html and its W&B run.

    Args:
        run: folder of the run, or with ``experiment`` a results folder in the layout of the published code.
        experiment: name of a folder in ``run/Results``, where metrics.json goes.
        compare: folders of further runs, measured too and printed beside it; of runs that differ in nothing but their
            seed and the earlier runs they avoid also the diversity.
        networks: files of the networks that judge, by name: see `load_judges`; null for one whose weights come with an
            installed package. The second classifier may be a class of `ace.models.foreign`, in a configuration.
        subsets: ``paper`` takes for each metric the images that the papers take, ``all`` all explained ones.
        min_images: how many images a Fréchet distance needs; by default one more than it has features.
        splits: random halves that sFID is averaged over; 1 for the single split of the published code.
        batch_size: images at a time.
        classifier: with ``experiment``, folder of the classifier that was explained; a run knows its own.
        query: with ``classifier``, the attribute that was asked for, if it knows several.
    """
    options = {"subsets": subsets, "min_images": min_images, "splits": splits, "batch_size": batch_size}
    load = partial(load_judges, networks or {}, **options)
    if experiment is not None:
        if compare:
            sys.exit("error: --compare takes run folders, which --experiment has not: leave one of them out")
        judges = one_sentence(lambda: judges_of_results(load(), classifier, query))
        print_metrics({experiment: one_sentence(lambda: evaluate_published(run, experiment, judges))})
        return
    if classifier is not None or query is not None:
        sys.exit("error: --classifier and --query go with --experiment: a run folder knows what it explained")
    stores = {folder: one_sentence(partial(RunStore.open, folder)) for folder in (run, *(compare or []))}
    judges, found = one_sentence(load), {}
    shared = one_sentence(lambda: measure_diversity(list(stores.values()), judges)) if compare else {}
    for folder, store in stores.items():
        found[folder] = one_sentence(lambda store=store: evaluate_store(store, judges_of_run(judges, store), shared))
        if store.records():
            one_sentence(partial(write_report, store))
        log_metrics(run_loggers(store), store, found[folder])
    print_metrics(found)


def load_judges(networks: dict[str, ForeignClassifier | str | None], **options: Any) -> Judges:
    """Load the networks; one whose file is missing is reported, and its metrics are left out.

    Args:
        networks: paths by name, those of `ace.models.encoders.load_encoder` and ``second_classifier``, which may also
            be a classifier that is loaded already.
        options: further fields of `Judges`.

    Raises:
        ValueError: an unknown name, a second oracle, a damaged file, a class where a path belongs, or an option out of
            range.
    """
    judges = Judges(device="cuda" if torch.cuda.is_available() else "cpu", **options)
    for name, path in networks.items():
        with _left_out(name, FileNotFoundError):
            _add(judges, name, path)
    return judges


def judges_of_run(judges: Judges, store: RunStore) -> Judges:
    """The judges, with what the run knows: classifier, decision and data. What is not there any more is reported."""
    judges, query = judges_of_data(judges, store), _query(store)
    if not store.names_networks:
        return judges
    with _left_out("COUT", *INPUT_ERRORS):
        classifier = _unchanged_classifier(store)
        judges.decision = _decision(classifier, query, store)
        judges.classifier = classifier.to(judges.device)
    if judges.second is not None:
        with _left_out(SECOND, ValueError):
            judges.second_decision = _decision(judges.second, query, store)
    return judges


def judges_of_data(judges: Judges, store: RunStore) -> Judges:
    """The judges, with the attribute that the run asked for, and what its data tell of it or a report that they do not.

    Without an attribute in question they stay as they are.
    """
    judges, query = replace(judges), _query(store)
    if query is not None:
        judges.query = _index(judges, query)
        with _left_out("the run's data, for change_in_region and cd,", *INPUT_ERRORS):
            _add_data(judges, store, query)
    return judges


def judges_of_results(judges: Judges, classifier: str | None, query: int | str | None) -> Judges:
    """The judges, with what the folders of another code's results do not tell: what was explained.

    Raises:
        FileNotFoundError: there is no such classifier.
        ValueError: it is damaged, does not know the query, or none is given for the query.
    """
    if classifier is None:
        if query is not None:
            raise ValueError(f"query {query!r} is asked of a classifier: give the folder of the one that was explained")
        return judges
    explained = load_classifier(classifier)
    decision = decision_for(explained, query)
    name = None if query is None else decision.class_names[1]
    judges = replace(judges, classifier=explained.to(judges.device), decision=decision, query=_index(judges, name))
    if judges.query is not None:
        warnings.warn(
            "cd is left out: it needs the labels of training data, which the folders do not tell", stacklevel=2
        )
    if judges.second is not None:
        with _left_out(SECOND, ValueError):
            judges.second_decision = _same_decision(judges.second, name, decision.class_names)
    return judges


def _add(judges: Judges, name: str, path: ForeignClassifier | str | None) -> None:
    if isinstance(path, ForeignClassifier) and name != SECOND:
        raise ValueError(f"{name} takes a path: of the networks that judge {SECOND} alone may be a class")
    role = ROLES.get(name, "oracle" if name.startswith("oracle") else name)
    if role == "oracle" and judges.oracle is not None:
        raise ValueError(f"{name} is a second oracle, and one alone tells attributes: leave one of them out")
    if path is not None:
        foreign = isinstance(path, ForeignClassifier)
        judges.sources[role] = (
            f"{type(path).__name__}, weights {path.identity['weights'][:12]}" if foreign else str(path)
        )
    if role == "second":
        judges.second = load_classifier(path).to(judges.device)
        return
    network = load_encoder(name, path).to(judges.device)
    if role == "oracle":
        judges.oracle, judges.attributes = network, network.attributes
    elif name in ROLES:
        setattr(judges, role, network)
    elif "lpips" in name:
        judges.distances[name] = network
    else:
        judges.encoders[name] = network


def _query(store: RunStore) -> str | None:
    """The attribute that the run asked for, by name: indices are one classifier's own."""
    asked = store.names_networks and store.config["model"].get("query") is not None
    return store.class_name(1) if asked else None


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
    names = store.settings["decision"]
    decision = _same_decision(classifier, query, names["class_names"])
    return AwayFrom(decision) if names["target_names"] != names["class_names"] else decision


def _same_decision(classifier: NormalisedClassifier, query: str | None, class_names: list[str]) -> Decision:
    decision = decision_for(classifier, query)
    if decision.class_names != class_names:
        raise ValueError(f"it decides between {decision.class_names}, what was explained between {class_names}")
    return decision


def _index(judges: Judges, query: str | None) -> int | None:
    """Of the attribute among those of the oracle."""
    return judges.attributes.index(query) if query in judges.attributes else None


def _add_data(judges: Judges, store: RunStore, query: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": store.config["data"]})).data
    explained, trained_on = data.dataset(data.predict_split), data.dataset("train")
    if hasattr(explained, "query_region") and query in data.class_names:
        judges.region = lambda image_id: explained.query_region(image_id, query)
    labels = getattr(trained_on, "labels", None)
    if labels is None or judges.query is None:
        return
    if list(data.class_names) == list(judges.attributes):
        judges.correlations = query_correlations(torch.tensor(labels), judges.query)
    else:
        warnings.warn("cd is left out: the attributes of the run's data are not those of the oracle", stacklevel=2)


@contextmanager
def _left_out(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Report what is missing, and go on without it."""
    try:
        yield
    except errors as error:
        warnings.warn(f"{what} is left out: {sentence(error)}", stacklevel=3)
