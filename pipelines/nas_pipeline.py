"""The DAG: check -> search -> sample, fanned out over shards -> select -> retrain -> evaluate -> export, if blessed.

compile_to("pipeline.yaml", options, arguments(config, num_shards=4))
"""

import os
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines import components
from pipelines.options import Options
from tfnas.common.errors import UserError
from tfnas.config import Config
from tfnas.stages import handover

NAME = "tfnas"
_TRAINING = ("check", "search", "sample", "select", "retrain")  # and ranking: tasks that get the accelerators


def create_pipeline(options: Options) -> GraphComponent:
    """The pipeline. Its parameters are `arguments`; what is in `options` is fixed when it is compiled."""

    def prepared(stage: str, task: dsl.PipelineTask) -> dsl.PipelineTask:
        task.set_container_image(options.image)
        task.set_caching_options(stage not in options.uncached)
        if options.retries:
            task.set_retry(options.retries, backoff_duration=options.backoff, backoff_factor=2.0)
        if stage in (*_TRAINING, "export"):
            if options.cpu:
                task.set_cpu_limit(options.cpu)
            if options.memory:
                task.set_memory_limit(options.memory)
        if stage in _TRAINING and options.accelerator_type:
            task.set_accelerator_type(options.accelerator_type).set_accelerator_limit(options.accelerator_count)
        return task

    @dsl.pipeline(name=NAME, description="Posterior-guided one-shot neural architecture search")
    def pipeline(
        search_config: str,
        sample_config: str,
        retrain_config: str,
        evaluate_config: str,
        export_config: str,
        version: str,
        shards: list = ["1/1"],  # noqa: B006  kfp copies it into the YAML
        scratch: str = "",
    ):
        code = {"version": version}
        search_parts = {"search_config": search_config}
        sample_parts = {**search_parts, "sample_config": sample_config}
        retrain_parts = {**sample_parts, "retrain_config": retrain_config}
        evaluate_parts = {**retrain_parts, "evaluate_config": evaluate_config}
        export_parts = {**evaluate_parts, "export_config": export_config}

        check = prepared("check", components.check(**retrain_parts, **code))
        # After the check, and not of its outputs: a check that is made again makes no search again.
        search = prepared("search", components.search(**search_parts, **code, scratch=scratch).after(check))
        searched = search.outputs["run"]
        with dsl.ParallelFor(shards, name="shards") as shard:
            sample = prepared(
                "sample",
                components.sample(**sample_parts, **code, shard=shard, scratch=scratch, searched=searched),
            )
        select = prepared(
            "select",
            components.select(
                **sample_parts, **code, scratch=scratch, searched=searched, shards=dsl.Collected(sample.outputs["run"])
            ),
        )
        retrain = prepared(
            "retrain",
            components.retrain(
                **retrain_parts,
                **code,
                scratch=scratch,
                data=check.outputs["data"],
                searched=searched,
                selected=select.outputs["run"],
            ),
        )
        evaluate = prepared("evaluate", components.evaluate(**evaluate_parts, **code, retrained=retrain.outputs["run"]))
        left = {
            "searched": searched,
            "selected": select.outputs["run"],
            "retrained": retrain.outputs["run"],
            "evaluated": evaluate.outputs["run"],
        }
        with dsl.If(evaluate.outputs["Output"] == True, name="blessed"):  # noqa: E712  an expression of kfp's
            export = prepared(
                "export",
                components.export(**export_parts, **code, **left),
            )
            prepared(
                "report",
                components.report(
                    **export_parts, **code, **left, model=export.outputs["model"], exported=export.outputs["run"]
                ),
            )
        with dsl.Else(name="not-blessed"):
            prepared("report", components.report(**export_parts, **code, **left))

    return pipeline


def arguments(config: Config, num_shards: int = 1, scratch: str = "") -> dict[str, Any]:
    """The pipeline's parameters for a config.

    Args:
        config: settings.
        num_shards: parts that the candidates are evaluated in, side by side.
        scratch: folder that outlives a task, where an interrupted stage resumes; empty for none.

    Raises:
        UserError: for a number of shards below 1, or shards whose candidates depend on the machine that draws them.
    """
    if not 1 <= num_shards <= config.sample.num_candidates:
        raise UserError(
            f"--num_shards: from 1 to the number of candidates, {config.sample.num_candidates}, expected. "
            f"Received: {num_shards}"
        )
    by_latency = config.sample.latency or (config.sample.budgets and config.sample.resource == "latency")
    by_latency = by_latency or (config.search.latency and not config.sample.bounds)
    if by_latency and num_shards > 1:
        raise UserError(
            "--num_shards: 1 expected with a bound or budget of latency, which each machine measures as it finds it. "
            f"Received: {num_shards}"
        )
    return {
        **{f"{part}_config": text for part, text in handover.split(config).items()},
        "version": handover.version(config),
        "shards": [f"{i}/{num_shards}" for i in range(1, num_shards + 1)],
        "scratch": scratch,
    }


def compile_to(file: str | os.PathLike[str], options: Options, parameters: dict[str, Any]) -> None:
    """Writes the pipeline as YAML, with these parameters as its defaults."""
    compiler.Compiler().compile(create_pipeline(options), os.fspath(file), pipeline_parameters=parameters)
