"""Preview: what the data looks like to the network, and which sizes are possible, before anything is trained.

Not one of the stages of a run.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np
from matplotlib.figure import Figure

from tfnas.common.errors import unwrap_user_errors
from tfnas.config import Config
from tfnas.data import pipeline
from tfnas.runs import workdir
from tfnas.shrinking.preview import Preview, preview
from tfnas.tasks.network_inputs import Input
from tfnas.training import building, networks

PICTURE = "preview.png"
_NUM_MEASURED = 1000
_BATCH_SIZE = 250
_COLUMNS, _ROWS = 8, 2  # of each of the two splits shown


def run(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes `preview.png` in `path`, of images; prints what the data is like, and `tfnas.preview` of the supernet.

    Of the data, these are the sizes, and the mean and deviation of up to 1,000 training examples. Of a supernet with
    trained weights, losses are measured on validation examples; layers are timed if the latency is bounded. Of the
    published search, there is no preview.

    The folder does not become this config's: settings may still change. The test split is not read.

    Raises:
        UserError: for bad settings, data or files.
    """
    work = workdir.Workdir(path)
    with unwrap_user_errors():
        networks.set_seed(config.seed)
        splits = pipeline.load(config.data, work.path / "tensorflow_datasets", building.task_of(config))
        number = min(_NUM_MEASURED, splits.sizes["train"])
        # As many as are measured, because training would shuffle, and so read, all.
        few = dataclasses.replace(splits, train=splits.train.take(number), sizes={**splits.sizes, "train": number})
        moments = _moments(few, config)
        picture = work.write(PICTURE, lambda file: _draw(few, config, file)) if splits.inputs.are_images else None
        expected = None if config.search.published else _expected(config, splits)
    print(f"{config.data.title}: {splits.summary()}; of {number:,} training {splits.inputs.nouns} {moments}")
    if picture:
        print(f"preview   {picture}")
    if expected is not None:
        print(f"\n{expected}")


def _expected(config: Config, splits: pipeline.Splits) -> Preview:
    """Previews the config's supernet; with losses, if its weights are trained."""
    plain, examples = building.network(config, splits), None
    if config.supernet.trained:
        plain.compile(loss=splits.task.loss(), metrics=splits.task.metrics())
        examples = pipeline.evaluation_batches(splits.validation, config.data, _BATCH_SIZE)
    return preview(
        plain,
        examples,
        device=config.search.latency_device if config.search.latency else None,
        exclude=networks.patterns(config.search.exclude),
        num_examples=_NUM_MEASURED,
    )


def _moments(splits: pipeline.Splits, config: Config) -> str:
    """Mean and deviation along the last axis, over the training inputs without augmentation, in words.

    Of images, these are each channel's, of pixels scaled to [0, 1]; of values, the least and largest of all features.
    """
    inputs, sums = splits.inputs, {name: _Sums(one) for name, one in splits.inputs.by_name.items()}
    for given in splits.train.map(lambda given, *_: pipeline.prepare(given, config.data)).as_numpy_iterator():
        for name, array in inputs.unpacked(given).items():
            sums[name].add(array)
    return "; ".join(f"{name} " * inputs.named + found.in_words() for name, found in sums.items())


class _Sums:
    """Sums along the last axis, over the arrays of one input that are added."""

    def __init__(self, one: Input):
        self._is_image, self._features = one.is_image, cast("int", one.shape[-1])
        self._count, self._total, self._squares = 0, np.zeros(self._features), np.zeros(self._features)

    def add(self, array: np.ndarray) -> None:
        numbers = array.reshape(-1, self._features).astype(np.float64) / (255.0 if self._is_image else 1.0)
        self._count += len(numbers)
        self._total += numbers.sum(0)
        self._squares += (numbers**2).sum(0)

    def in_words(self) -> str:
        mean = self._total / self._count
        std = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0.0))
        if self._is_image:
            return f"mean={_tuple(mean)}, std={_tuple(std)}"
        return f"mean from {mean.min():.4g} to {mean.max():.4g}, std from {std.min():.4g} to {std.max():.4g} by feature"


def _tuple(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ("," if len(values) == 1 else "") + ")"


def _draw(splits: pipeline.Splits, config: Config, file: pathlib.Path) -> None:
    shown = _COLUMNS * _ROWS
    batch = min(shown, splits.sizes["train"])
    train = next(pipeline.training_batches(splits, config.data, batch, 1, config.seed).as_numpy_iterator())
    validation = next(pipeline.evaluation_batches(splits.validation, config.data, shown).as_numpy_iterator())
    figure = Figure(figsize=(1.5 * _COLUMNS, 3.8 * _ROWS), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    for part, title, (images, targets, *_) in zip(
        parts, ("train, augmented", "validation"), (train, validation), strict=True
    ):
        part.suptitle(title)
        axes = np.ravel(part.subplots(_ROWS, _COLUMNS))
        for axis in axes:
            axis.axis("off")
        for i, (axis, image) in enumerate(zip(axes, _shown(images, config), strict=False)):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            target = keras.tree.map_structure(lambda x, i=i: x[i], targets)
            axis.set_title(splits.task.titled(target, splits.label_names), fontsize=8)
    figure.savefig(file)


def _shown(images: np.ndarray, config: Config) -> Sequence[Any]:
    """Standardized images as matplotlib takes them: in [0, 1], without a lone channel's axis."""
    pixels = np.clip(images * np.array(config.data.std) + np.array(config.data.mean), 0.0, 1.0)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
