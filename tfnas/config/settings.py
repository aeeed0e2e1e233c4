"""Config: all settings of a run, and the checks that involve several sections. No TensorFlow.

A config file under ``configs/`` is plain Python::

    from tfnas.config import Config, Search, to_config_dict

    def get_config():
        return to_config_dict(Config(search=Search(epochs=30, parameters=0.4)))

The command line overrides single keys (``--config.search.parameters=0.3``), then `from_config_dict` checks everything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from tfnas.common import schema, user_functions
from tfnas.config import fields
from tfnas.config.sections.data import Data
from tfnas.config.sections.evaluate import Evaluate
from tfnas.config.sections.export import Export, check_name
from tfnas.config.sections.retrain import OF_BOUNDS, OF_ELL2, Retrain
from tfnas.config.sections.sample import Sample
from tfnas.config.sections.search import Search
from tfnas.config.sections.supernet import Supernet
from tfnas.config.sections.training import Training
from tfnas.config.sections.tune import Tune
from tfnas.tasks import facts

_MOST = 2**31  # bound of every integer, set by the seeds of NumPy and TensorFlow


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on besides the code and the data."""

    data: Data = Data()
    supernet: Supernet = Supernet()
    search: Search = Search()
    sample: Sample = Sample()
    retrain: Retrain = Retrain()
    training: Training = Training()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    tune: Tune = Tune()
    # What the network is for: 'classification', 'multi_label', 'regression', 'segmentation' or 'custom'
    # (docs/your_model.md). All but the first need data.source.
    task: str = "classification"
    loss: str = ""  # 'package.module:loss', a function of (targets, outputs), in place of the task's; 'custom' needs it
    metric: str = ""  # 'package.module:metric', likewise, or a class of keras.metrics.Metric; of 'custom' only
    metric_goal: str = ""  # of it: 'max' or 'min', whether higher or lower is better
    # Devices: 'auto', 'one_device', 'mirrored' (all GPUs of this machine), 'multi_worker' (all GPUs of the processes in
    # TF_CONFIG) or 'tpu'. A run may be resumed on others.
    distribution: str = "auto"
    seed: int = 0

    @property
    def facts(self) -> facts.Facts:
        """Facts about the task: the metrics that a run measures."""
        return facts.facts_of(self.task, self.metric, self.metric_goal)

    def check(self) -> Config:
        """This config with the values for what is left out. Raises UserError for a value out of range, or two that do
        not fit."""
        trained = self.supernet.trained
        retrain = self.retrain.resolved(trained)
        search = self.search.resolved(retrain, trained)
        retrain = dataclasses.replace(retrain, learning_rate=retrain.learning_rate or search.learning_rate)
        config = dataclasses.replace(self, search=search, retrain=retrain)
        config._check()
        return config

    def _check(self) -> None:
        fields.one_of("distribution", self.distribution, ("auto", "one_device", "mirrored", "multi_worker", "tpu"))
        fields.require(0 <= self.seed < _MOST, "seed", self.seed, f"at least 0 and below {_MOST}")
        for field in dataclasses.fields(self):
            if dataclasses.is_dataclass(section := getattr(self, field.name)):
                section.check()  # type: ignore[union-attr]
        self._check_task()
        if self.search.published:
            self.sample.check_published()
            others = {"gate_step": "a search with bounds, and search.ell2 is set"}
        else:
            by_latency = self.sample.latency or (self.sample.budgets and self.sample.resource == "latency")
            expected = "set with a search that has a bound on it, search.latency"
            fields.require(not by_latency or self.search.latency > 0, "sample's latency", True, expected)
            of_ell2 = "the published search, which search.ell2 selects"
            others = dict.fromkeys(("ell2", "gate_learning_rate"), of_ell2)
            if self.search.importance != "gates":
                others |= dict.fromkeys(("gate_step", "temperature", "initial_drop"), "search.importance='gates'")
        for name, of in others.items():
            given = getattr(self.tune, name)
            fields.require(not given, f"tune.{name}", given, f"left out: it belongs to {of}")
        published = self.search.published
        choices = OF_ELL2 if published else [name for name in OF_BOUNDS if name != self.search.importance]
        expected = f"among {', '.join(choices)} {'with' if published else 'without'} search.ell2"
        fits = {*self.retrain.baselines} <= {*choices}
        fields.require(fits, "retrain.baselines", self.retrain.baselines, expected)
        untrained = (
            published or self.search.epochs or all(self.search.by(name).plain for name in self.retrain.baselines)
        )
        expected = "among even, norm with search.epochs=0, which others are learned in"
        fields.require(bool(untrained), "retrain.baselines", self.retrain.baselines, expected)
        taught = not self.retrain.distill or self.retrain.baseline or self.supernet.trained
        expected = "left at 0 without a teacher, which retrain.baseline or trained weights give (supernet.weights)"
        fields.require(taught, "retrain.distill", self.retrain.distill, expected)
        compared = self.retrain.baseline or self.evaluate.max_drop == 1
        expected = "left at 1 without retrain.baseline: there is no full network to compare with"
        fields.require(compared, "evaluate.max_drop", self.evaluate.max_drop, expected)
        members, leaders = self.export.uncertainty, min(self.sample.num_tested, self.sample.num_candidates)
        expected = f"at most sample.num_tested and sample.num_candidates, {leaders}: so many of the best are kept"
        fields.require(members <= leaders, "export.uncertainty", members, expected)
        for stage in ("search", "retrain"):
            batch, parts = getattr(self, stage).batch_size, self.training.accumulate
            fields.require(
                batch % parts == 0, f"{stage}.batch_size", batch, f"a multiple of training.accumulate, {parts}"
            )
        for key, value in _leaves(self):
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str):
                    fields.require(schema.is_plain(item), key, value, "text without control characters")
                elif isinstance(item, float):
                    fields.require(math.isfinite(item), key, value, "finite")
                else:
                    fields.require(item < _MOST, key, value, f"below {_MOST}")
        check_name(self.export.name or self.data.short_name, self.export.name)

    def _check_task(self) -> None:
        fields.one_of("task", self.task, facts.NAMES)
        own = self.task == facts.CUSTOM
        if self.loss or own:
            user_functions.check_name("loss", self.loss)
        if own:
            user_functions.check_name("metric", self.metric)
            fields.one_of("metric_goal", self.metric_goal, facts.GOALS)
        for name in ("metric", "metric_goal"):
            given = getattr(self, name)
            fields.require(own or not given, name, given, "left out: it belongs to task='custom'")
        task = self.facts
        fields.one_of("sample.rank_by", self.sample.rank_by, ("loss", task.example.name))
        fields.one_of("tune.objective", self.tune.objective, ("loss", task.example.name))
        limit = self.evaluate.threshold
        fields.require(limit <= 1 or not task.headline.share, "evaluate.threshold", limit, "a share in [0, 1]")
        if task.classes:
            return
        expected = f"a function that returns the splits, with task='{self.task}'"
        fields.require(bool(self.data.source), "data.source", self.data.source, expected)
        for key, value in (
            ("sample.ensemble", self.sample.ensemble),
            ("export.uncertainty", self.export.uncertainty),
        ):
            fields.require(not value, key, value, "left at 0: it belongs to task='classification'")
        if task.spatial:
            expected = f"left out: with task='{self.task}', a crop would have to be the mask's too"
            fields.require(not self.data.pad_crop, "data.pad_crop", self.data.pad_crop, expected)
            fields.require(not self.data.random_resized_crop, "data.random_resized_crop", True, expected)


def _leaves(config: Config) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (
                (f"{field.name}.{inner.name}", getattr(value, inner.name)) for inner in dataclasses.fields(value)
            )
        else:
            yield field.name, value
