"""One component a stage: makes the working directory, calls the stage's `run`, hands over what it left.

The engine ships a function's source, and nothing else of this file, into the image's Python, where tfnas is installed:
so a body imports what it needs, and what is more than a call is in tfnas/stages/handover.py. Every component takes the
parts of the config that its stage depends on, and no later ones: only a change of those makes it run again.
"""

from typing import List, Optional  # noqa: UP035  kfp 2.17 knows artifacts' lists and options by these names

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

IMAGE = "tfnas:latest"  # what `docker build` of pipelines/Dockerfile is called in docs/pipelines.md

_component = dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)


@_component
def check(
    search_config: str,
    sample_config: str,
    retrain_config: str,
    version: str,
    data: Output[Dataset],
):
    """Checks the data and takes some training steps, before the hours are spent.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        retrain_config: JSON of the section retrain.
        version: of the code, which the engine's cache cannot see.
        data: sizes, shape and classes of the data, as JSON.
    """
    import json

    from tfnas.stages import handover

    with handover.task("check", [search_config, sample_config, retrain_config], version=version) as task:
        from tfnas.stages import check as stage

        found = stage.run(task.config, task.path)
        with open(data.path, "w") as stream:
            json.dump(found, stream)
        task.describe(data, found)


@_component
def search(search_config: str, version: str, scratch: str, run: Output[Model], metrics: Output[Metrics]):
    """Trains the supernet and learns how likely each channel is to be dropped.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        version: of the code, which the engine's cache cannot see.
        scratch: folder that outlives the task, where an interrupted search resumes; empty for none.
        run: the trained supernet, its posterior and history.
        metrics: of the last epoch.
    """
    from tfnas.stages import handover

    with handover.task("search", [search_config], version=version, scratch=scratch) as task:
        from tfnas.stages import search as stage

        stage.run(task.config, task.path)
        task.hand_over(run.path)
        task.describe(run)
        task.log_metrics(metrics)


@_component
def sample(
    search_config: str,
    sample_config: str,
    shard: str,
    version: str,
    scratch: str,
    searched: Input[Model],
    run: Output[Artifact],
):
    """Evaluates one shard of the candidates.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        shard: 'i/n', part i of n.
        version: of the code, which the engine's cache cannot see.
        scratch: folder that outlives the task, where an interrupted stage resumes; empty for none.
        searched: what search left.
        run: the evaluations.
    """
    from tfnas.stages import handover

    with handover.task(
        "sample", [search_config, sample_config], [searched.path], version=version, scratch=scratch, shard=shard
    ) as task:
        from tfnas.stages import sample as stage

        stage.run(task.config, task.path, shard)
        task.hand_over_shard(run.path)
        task.describe(run, {"shard": shard})


@_component
def select(
    search_config: str,
    sample_config: str,
    version: str,
    scratch: str,
    searched: Input[Model],
    shards: Input[List[Artifact]],  # noqa: UP006
    run: Output[Artifact],
    metrics: Output[Metrics],
):
    """Merges the shards' evaluations and ranks all candidates.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        version: of the code, which the engine's cache cannot see.
        scratch: folder that outlives the task, where an interrupted stage resumes; empty for none.
        searched: what search left.
        shards: what the shards left.
        run: every candidate's score, and the winner's architecture.
        metrics: of the winner, on the validation split.
    """
    from tfnas.stages import handover

    folders = [searched.path, *(shard.path for shard in shards)]
    with handover.task("sample", [search_config, sample_config], folders, version=version, scratch=scratch) as task:
        from tfnas.stages import sample as stage

        stage.run(task.config, task.path)
        task.hand_over(run.path)
        task.describe(run)
        task.log_metrics(metrics)


@_component
def retrain(
    search_config: str,
    sample_config: str,
    retrain_config: str,
    version: str,
    scratch: str,
    data: Input[Dataset],
    searched: Input[Model],
    selected: Input[Artifact],
    run: Output[Model],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
):
    """Cuts the winner out, trains it further, and compares on the test split.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        retrain_config: JSON of the section retrain.
        version: of the code, which the engine's cache cannot see.
        scratch: folder that outlives the task, where an interrupted stage resumes; empty for none.
        data: what check found.
        searched: what search left.
        selected: what select left.
        run: the network found, and what it is compared with.
        metrics: of the network found, accuracy on the test split.
        confusion: its confusion matrix on the test split.
    """
    import json

    from tfnas.stages import handover

    parts = [search_config, sample_config, retrain_config]
    folders = [searched.path, selected.path]
    with handover.task("retrain", parts, folders, version=version, scratch=scratch) as task:
        from tfnas.stages import retrain as stage

        stage.run(task.config, task.path)
        task.hand_over(run.path)
        task.describe(run)
        task.log_metrics(metrics)
        with open(data.path) as stream:
            task.log_confusion(confusion, json.load(stream)["classes"])


@_component
def evaluate(
    search_config: str,
    sample_config: str,
    retrain_config: str,
    evaluate_config: str,
    version: str,
    retrained: Input[Model],
    run: Output[Artifact],
    metrics: Output[Metrics],
) -> bool:
    """Compares the network found with the thresholds; returns whether it is blessed.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        retrain_config: JSON of the section retrain.
        evaluate_config: JSON of the section evaluate.
        version: of the code, which the engine's cache cannot see.
        retrained: what retrain left.
        run: the verdict.
        metrics: the values compared with the thresholds; blessed is 1 or 0.
    """
    from tfnas.stages import handover

    parts = [search_config, sample_config, retrain_config, evaluate_config]
    with handover.task("evaluate", parts, [retrained.path], version=version) as task:
        from tfnas.stages import evaluate as stage

        stage.run(task.config, task.path)
        task.hand_over(run.path)
        task.describe(run)
        task.log_metrics(metrics)
        return task.verdict().blessed


@_component
def export(
    search_config: str,
    sample_config: str,
    retrain_config: str,
    evaluate_config: str,
    export_config: str,
    version: str,
    searched: Input[Model],
    selected: Input[Artifact],
    retrained: Input[Model],
    evaluated: Input[Artifact],
    model: Output[Model],
    run: Output[Artifact],
):
    """Writes the SavedModel, and checks it in a process of its own.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        retrain_config: JSON of the section retrain.
        evaluate_config: JSON of the section evaluate.
        export_config: JSON of the section export.
        version: of the code, which the engine's cache cannot see.
        searched: what search left.
        selected: what select left.
        retrained: what retrain left.
        evaluated: what evaluate left.
        model: folder with the SavedModel's version, as TensorFlow Serving expects it.
        run: what was checked.
    """
    from tfnas.runs import stage_table
    from tfnas.stages import handover

    parts = [search_config, sample_config, retrain_config, evaluate_config, export_config]
    folders = [searched.path, selected.path, retrained.path, evaluated.path]
    with handover.task("export", parts, folders, version=version) as task:
        from tfnas.stages import export as stage

        stage.run(task.config, task.path)
        model.framework = "tensorflow"
        task.describe(model, {**task.facts(), "saved_model": task.hand_over_model(model.path)})
        task.hand_over(run.path, [stage_table.EXPORT_RESULTS])
        task.describe(run)


@_component
def report(
    search_config: str,
    sample_config: str,
    retrain_config: str,
    evaluate_config: str,
    export_config: str,
    version: str,
    searched: Input[Model],
    selected: Input[Artifact],
    retrained: Input[Model],
    evaluated: Input[Artifact],
    html: Output[HTML],
    model: Optional[Input[Model]] = None,  # noqa: UP045
    exported: Optional[Input[Artifact]] = None,  # noqa: UP045
):
    """Reports the run on one page.

    Args:
        search_config: JSON of the sections data, supernet, search, training, distribution, seed, and the task.
        sample_config: JSON of the section sample.
        retrain_config: JSON of the section retrain.
        evaluate_config: JSON of the section evaluate.
        export_config: JSON of the section export.
        version: of the code, which the engine's cache cannot see.
        searched: what search left.
        selected: what select left.
        retrained: what retrain left.
        evaluated: what evaluate left.
        html: the page; its metadata says where the model is, or why there is none.
        model: the exported model, if there is one.
        exported: what export left, if it ran.
    """
    from tfnas.stages import handover

    parts = [search_config, sample_config, retrain_config, evaluate_config, export_config]
    folders = [searched.path, selected.path, retrained.path, evaluated.path]
    if exported:
        folders.append(exported.path)
    with handover.task("report", parts, folders, version=version) as task:
        from tfnas.stages import report as stage

        stage.run(task.config, task.path)
        task.write_report(html.path, model.uri if model else "")
        task.end(html, f"{model.uri}/{model.metadata['saved_model']}" if model else "")
