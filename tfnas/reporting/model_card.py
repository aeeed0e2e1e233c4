"""The model card: what an exported network is, was made from, and was measured to do. No TensorFlow."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfnas.common import digests, markup, statistics
from tfnas.config import Config, Data
from tfnas.reporting import acceptance
from tfnas.runs import provenance, stage_table
from tfnas.runs.measured import Results, Row, Verdict
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.posterior import Posterior
from tfnas.search_space.unit_posterior import UnitPosterior
from tfnas.tasks.facts import Facts
from tfnas.tasks.network_inputs import Inputs

JSON, MARKDOWN = "model_card.json", "model_card.md"
_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_LEVEL = 0.95  # of the intervals
_SHOWN = 20  # classes and files that the Markdown lists


def card(
    config: Config,
    *,
    name: str,
    inputs: Inputs,
    label_names: Sequence[str],
    sizes: Mapping[str, int],
    results: Results,
    verdict: Verdict,
    posterior: Posterior | UnitPosterior,
    architecture: Architecture,
    reloaded: Mapping[str, Any],
    signatures: Sequence[str],
    versions: Mapping[str, Mapping[str, str]],
    saved_model: pathlib.Path,
    made_from: Mapping[str, str],
) -> dict[str, Any]:
    """The card as JSON has it: the same for the same run, but for what files and measurements differ in.

    Args:
        config: of the run.
        name: of the served model.
        inputs: what the network takes of an example.
        label_names: in the order of the probabilities.
        sizes: examples by split.
        results: of retrain.
        verdict: of evaluate.
        posterior: of search.
        architecture: that was cut out.
        reloaded: `largest_difference`, `metric` and `total` of the SavedModel in a process of its own.
        signatures: that the SavedModel has.
        versions: by stage, in the order of the run, and package.
        saved_model: folder, whose files' digests are taken.
        made_from: digests of the files that it was made from.
    """
    chosen, full, total = results.chosen_row, results.full_row, results.num_examples
    decided, gates = posterior.decided()
    data, facts = config.data, config.facts
    return {
        "name": name,
        "version": config.export.version,
        "task": facts.words.format(examples=inputs.nouns),
        "network": {
            "chosen": results.chosen,
            "supernet": config.supernet.source or config.supernet.name,
            "architecture": architecture.digest(),
            "channels_kept": architecture.kept,
            "channels_gated": architecture.total,
            "parameters": chosen.parameters,
            "multiply_adds": chosen.multiply_adds,
            "full": dataclasses.asdict(results.full),
        },
        "data": {
            "title": data.title,
            "sizes": {**sizes, "test": total},
            "inputs": [
                {"name": name, "dtype": one.dtype, "shape": list(one.shape)} for name, one in inputs.by_name.items()
            ],
            "examples": inputs.nouns,
            "classes": list(label_names),
            "preprocessing": _preprocessing(data) if inputs.images else None,
        },
        "metrics": {
            "validation": dict(chosen.validation),
            "test": _measured(chosen, total, facts),
            "test_of_the_full_network": _measured(full, total, facts) if full else None,
            "confusion": results.confusion,  # examples by label (rows) and most probable class (columns)
        },
        "latency": {
            "seconds": chosen.latency_seconds,
            "of_the_full_network": full.latency_seconds if full else None,
            "measured": config.search.latency_measured,
        },
        "published": config.search.published,  # or with bounds, on channel units
        "posterior": {
            # Of the gated kernel weights, or after a search with bounds, of the network's parameters.
            "expected_kept": posterior.expected_share("parameters")
            if isinstance(posterior, UnitPosterior)
            else posterior.expected_kept(),
            "gates": gates,
            "gates_decided": decided,
        },
        "evaluation": dataclasses.asdict(verdict),
        "reloaded": dict(reloaded),
        "signatures": list(signatures),
        "answers": facts.answers,
        "intended_use": _uses(config, inputs, label_names),
        "limits": _limits(config, inputs, results, label_names, versions),
        "seed": config.seed,
        "config_sha256": stage_table.config_digest(config),
        "versions": {stage: dict(found) for stage, found in versions.items()},
        "sha256": {
            "saved_model": {
                file.relative_to(saved_model).as_posix(): digests.of_file(file)
                for file in sorted(saved_model.rglob("*"))
                if file.is_file()
            },
            "inputs": dict(made_from),
        },
    }


def markdown(card: Mapping[str, Any], facts: Facts) -> str:
    """The card for readers; `facts` are the task's."""
    page = markup.environment(_TEMPLATES, finalize=_plain).get_template("model_card.md")
    return page.render(
        card=card,
        **{part: card[part] for part in ("network", "data", "metrics")},
        versions=provenance.by_package(card["versions"]),
        shown=_SHOWN,
        facts=facts,
        text=lambda metric, values: metric.exactly(metric.of(values)),
        published=card["published"],
    )


def _measured(row: Row, total: int, facts: Facts) -> dict[str, Any]:
    measured: dict[str, Any] = {**row.test, "total": total}
    if facts.exact:
        correct = round(facts.headline.of(row.test) * total)
        low, high = statistics.proportion_interval(correct, total, _LEVEL)
        measured |= {"correct": correct, "low": low, "high": high}
    return measured


def _preprocessing(data: Data) -> dict[str, Any]:
    return {
        "image_size": data.image_size,
        "center_crop": data.random_resized_crop,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def _uses(config: Config, inputs: Inputs, label_names: Sequence[str]) -> list[str]:
    raw = "raw images" if inputs.are_images else "inputs"
    prepared = "the SavedModel takes them as they are"
    if inputs.images:
        prepared = f"the SavedModel preprocesses {'them' if inputs.are_images else 'images'}"
    return [
        f"For {raw} like those of {config.data.title}: {prepared}.",
        config.facts.use.format(example=inputs.noun, count=f"{len(label_names):,}"),
    ]


def _limits(
    config: Config,
    inputs: Inputs,
    results: Results,
    label_names: Sequence[str],
    versions: Mapping[str, Mapping[str, str]],
) -> list[str]:
    limits = [
        f"It was measured on the test split of {config.data.title} only. How it does on {inputs.nouns} from elsewhere, "
        "on damaged or distorted ones, or on ones made to mislead it, was not measured.",
        "The test split was read when retrain evaluated its finished networks, and by export, which scored the "
        "finished SavedModel.",
        f"The {config.facts.primary} are the network's own"
        + ("; whether they are calibrated was not measured here." if config.facts.primary == "probabilities" else "."),
    ]
    if doubted := acceptance.doubt(results, config.facts):
        limits.append(f"{doubted[0].upper()}{doubted[1:]}.")
    rows = zip(label_names, results.confusion, strict=True) if results.confusion else ()
    recall = {name: row[i] / sum(row) for i, (name, row) in enumerate(rows) if sum(row)}
    if recall:
        worst = min(recall, key=lambda name: recall[name])
        limits.append(
            f"Classes differ: of the test {inputs.nouns} of '{worst}' it classifies {recall[worst]:.1%} correctly, the "
            "least of all classes. No other groups were compared."
        )
    if config.export.uncertainty:
        limits.append(
            f"serve_uncertainty answers by {config.export.uncertainty} other networks, the search's best candidates "
            "under its own weights, not retrained: its mean is not the served network's answer, and its accuracy was "
            "not measured on test."
        )
    if different := provenance.differences(versions):
        limits.append(f"It was made in stages that ran with different versions: {different}.")
    return limits


def _plain(value: Any) -> Any:
    """A text without what Markdown or HTML would take for its own."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in value) if isinstance(value, str) else value
