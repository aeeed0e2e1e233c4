"""Export: a SavedModel that takes raw inputs and gives the task's answers, checked where only TensorFlow is."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile

import keras

from tfnas.common import atomic, digests, terminal
from tfnas.common.errors import UserError
from tfnas.config import FORMATS, Config
from tfnas.cutting.subnets import subnet
from tfnas.data import pipeline, sources
from tfnas.exporting import conversion, savedmodel, verification, warmup
from tfnas.gating import saving
from tfnas.reporting import acceptance, model_card
from tfnas.runs import provenance, stage_table, workdir
from tfnas.runs.measured import Exported, Results, Verdict
from tfnas.runs.sampled import Ranked
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.unit_posterior import read_posterior
from tfnas.training import building, networks, preflight

_KERAS = "model.keras"
_WARMUP = 8  # validation examples that are kept for warm-up requests


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Exports the network that retrain left in `path` to `export/NAME/VERSION`.

    A fresh process reloads it first, and scores it on the test split once more. Unless it answers as the network does,
    and every other format is written, the version that was there before stays as it is, and no other is left.

    Raises:
        UserError: for bad settings or files, if retrain has not run, or the SavedModel answers otherwise.
    """
    config, work = config.check(), workdir.Workdir(path)
    work.run_stage("export", config, lambda: _export(config, work))


def _export(config: Config, work: workdir.Workdir) -> list[str]:
    conversion.require(config.export.formats)
    verdict = work.read_json(stage_table.EVALUATION, "export", Verdict)
    if not verdict.blessed:
        raise UserError(
            f"export: the network is not what was asked for: {acceptance.reasons(verdict)}. Search again, or ask for "
            "less by --config.evaluate"
        )
    networks.set_seed(config.seed)
    folder = work.path / "tensorflow_datasets"
    task = building.task_of(config)
    source = sources.load(config.data, folder, task)
    splits = pipeline.from_source(source, config.data, task)
    preflight.formats(config, splits)
    model = saving.load_model(work.path / stage_table.SUBNET, keras.Model)
    _check_fits(model, splits, work.path / stage_table.SUBNET)
    text = (work.path / stage_table.CUT_ARCHITECTURE).read_text()
    architecture = Architecture.from_json(text)  # refuses one that was altered
    results = work.read_json(stage_table.RESULTS, "export", Results)
    confusion = task.confusion(splits.num_outputs)
    if {len(results.confusion), *map(len, results.confusion)} != {0 if confusion is None else len(confusion)}:
        raise UserError(
            f"{work.path / stage_table.RESULTS}: a confusion of {splits.num_outputs} classes expected. "
            f"Received: {len(results.confusion)}; run retrain again"
        )
    ensemble = _ensemble(config, work, splits)
    name = config.export.name or config.data.short_name
    base = f"export/{name}"
    target = work.file(f"{base}/{config.export.version}")

    # All of it is written aside, and all is checked, before any of it is moved to where servers and users look. What
    # is served comes last: until then the version before it stays.
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f"{atomic.TEMPORARY}export-", dir=target.parent))
    try:
        saved = aside / target.name
        savedmodel.write(model, splits, config, saved, ensemble)
        examples = next(iter(splits.validation.batch(_WARMUP)))[0]
        warmup.write(examples, splits, name, saved, bool(ensemble))
        sources.check_test(config.data, folder)
        headline, total = task.facts.headline, results.num_examples
        measured = headline.of(results.chosen_row.test)
        found = verification.check(model, source, splits, config, saved, measured, total, ensemble)
        same = "equal" if found["metric"] == measured else f"{headline.exactly(found['metric'])}, as good as equal"
        difference = f"{found['largest_difference']:.0e}"
        terminal.console.print(
            f"export    reloaded without tfnas: {task.primary} equal to {difference}, test {headline.title} {same}"
        )
        formats = conversion.convert(model, splits, config, config.export.formats, aside)
        card = model_card.card(
            config,
            name=name,
            inputs=splits.inputs,
            label_names=splits.label_names,
            sizes=splits.sizes,
            results=results,
            verdict=verdict,
            posterior=read_posterior((work.path / stage_table.POSTERIOR).read_bytes()),
            architecture=architecture,
            reloaded=found,
            signatures=savedmodel.names(splits, ensemble),
            versions={**_versions(work), "export": provenance.versions()},
            saved_model=saved,
            made_from={file: digests.of_file(work.path / file) for file in stage_table.STAGES["export"].inputs},
        )
        markdown = model_card.markdown(card, config.facts)
        cards = {model_card.JSON: json.dumps(card, indent=1) + "\n", model_card.MARKDOWN: markdown}
        texts = {"architecture.json": text, "labels.txt": "".join(f"{name}\n" for name in splits.label_names), **cards}
        model.save(aside / _KERAS)
        for file, content in texts.items():
            (aside / file).write_text(content)
        for file, content in cards.items():
            (saved / "assets.extra" / file).write_text(content)
        beside = [_KERAS, *texts]
        for file in (*config.export.formats, *beside, target.name):
            atomic.replace(aside / file, target.parent / file)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for other in {*FORMATS} - {*config.export.formats}:  # of an earlier export
        shutil.rmtree(target.parent / other, ignore_errors=True)

    exported = Exported(
        saved_model=str(target.relative_to(work.path)),
        card=f"{base}/{model_card.MARKDOWN}",
        inputs=splits.inputs,
        outputs=splits.output_names or (task.primary,),
        largest_difference=found["largest_difference"],
        test=measured,
        served=found["metric"],
        files=tuple(f"{base}/{file}" for file in beside),
        formats=tuple(dataclasses.replace(converted, file=f"{base}/{converted.file}") for converted in formats),
    )
    work.write_json(stage_table.EXPORT_RESULTS, exported)
    return [exported.saved_model, *exported.files, *(f"{base}/{name}" for name in config.export.formats)]


def _versions(work: workdir.Workdir) -> dict[str, dict[str, str]]:
    """Returns the versions that earlier stages used."""
    before = list(stage_table.STAGES)[: list(stage_table.STAGES).index("export")]
    return {stage: entry.versions for stage, entry in work.manifest().stages.items() if stage in before}


def _check_fits(model: keras.Model, splits: pipeline.Splits, path: pathlib.Path) -> None:
    taken = building.input_shapes(model)
    if not splits.inputs.named and len(taken) == 1:  # of any name
        taken = splits.inputs.unpacked(*taken.values())
    outputs = [tuple(tensor.shape) for tensor in model.outputs]
    wanted = {name: (None, *one.shape) for name, one in splits.inputs.by_name.items()}
    head = [splits.head] if splits.head else outputs
    if (taken, outputs) != (wanted, head):
        raise UserError(
            f"{path}: inputs of shapes {wanted} and outputs of shapes {head} expected, as the data has. Received: "
            f"{taken} and {outputs}"
        )


def _ensemble(config: Config, work: workdir.Workdir, splits: pipeline.Splits) -> list[keras.Model]:
    """The best candidates of the posterior, cut out with the normalization statistics that they were ranked with."""
    count = config.export.uncertainty
    if not count:
        return []
    leaders = work.read_json(stage_table.RANKING, "export", Ranked).race.leaders
    if len(leaders) < count:
        raise UserError(f"export.uncertainty: at most the {len(leaders)} candidates that may win. Received: {count}")
    supernet = saving.load(work.path / stage_table.SUPERNET)
    recalibration = networks.recalibration(config, splits, supernet)
    members = []
    for leader in leaders[:count]:
        candidate = Architecture.from_json(json.dumps(leader))
        if recalibration:
            recalibration.apply(candidate)
        members.append(subnet(supernet, candidate))
    return members
