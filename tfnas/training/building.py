"""The plain supernet of a config: built by a function or read from a file, with new or trained weights."""

from __future__ import annotations

import io
import pathlib
import zipfile
from typing import Any

import h5py
import keras
import tensorflow as tf

from tfnas import config as config_lib
from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.cutting import subnets
from tfnas.data import pipeline
from tfnas.gating import saving
from tfnas.gating.supernet import Supernet
from tfnas.runs.stage_table import SUPERNET
from tfnas.runs.workdir import Workdir
from tfnas.tasks import meanings
from tfnas.tasks.functions import in_float32
from tfnas.tasks.recognition import activation_of
from tfnas.tasks.task import Task

_LONGEST = 300  # characters of Keras's message on weights that do not fit


def task_of(config: config_lib.Config) -> Task:
    """Returns the task of a run. Raises UserError for a loss or a metric that cannot be found."""
    return meanings.task_of(config.task, config.loss, config.metric, config.metric_goal)


def load_supernet(config: config_lib.Config, work: Workdir) -> Supernet:
    """Loads the supernet that search left, compiled to be ranked.

    Raises:
        UserError: as `saving.load`.
    """
    supernet = saving.load(work.path / SUPERNET)
    compile_to_rank(config, supernet)
    return supernet


def compile_to_rank(config: config_lib.Config, supernet: Supernet) -> None:
    """Compiles a trained supernet with the loss and the metric of the task.

    Training does without the metric, which may be the user's own, because a `.keras` file with it could not be loaded.
    """
    task = task_of(config)
    supernet.compile(loss=task.loss(), metrics=task.metrics(), auto_scale_loss=False)


def builder_name(config: config_lib.Config) -> str:
    """Returns the name by which `subnets.builder` finds the supernet: a user's function or file, or one in
    `tfnas.supernets`."""
    return config.supernet.source or config.supernet.name


def network_arguments(config: config_lib.Config, splits: pipeline.Splits) -> dict[str, Any]:
    """Returns the arguments of the function that `builder_name` names, for these inputs and targets.

    Several inputs have their shapes in a dict by name.
    """
    outputs = {splits.task.argument: splits.num_outputs} if splits.label_names else {}
    return {**config.supernet.arguments(), **outputs, "input_shape": splits.inputs.shapes}


def network(config: config_lib.Config, splits: pipeline.Splits) -> keras.Model:
    """Builds the plain, ungated supernet of `config`, with the trained weights that it names, if any.

    Raises:
        UserError: if it cannot take these inputs, a user's function or file does not give a suitable network, the
            weights are those of another one, or a loss or a metric of several outputs does not fit them.
    """
    model = _built(config, splits)
    if config.supernet.weights:
        _load_weights(model, pathlib.Path(config.supernet.weights), builder_name(config))
    if splits.output_names:
        _check_functions(config, model, splits)
    return model


def _built(config: config_lib.Config, splits: pipeline.Splits) -> keras.Model:
    build = subnets.builder(builder_name(config), "supernet.source")
    arguments = network_arguments(config, splits)
    if source := config.supernet.source:
        model = user_functions.call("supernet.source", source, build, **arguments)
        _check_network(model, source, splits)
        return model
    if splits.inputs.named or not splits.inputs.spatial:
        raise UserError(
            f"supernet.source: a model of yours expected for inputs {splits.inputs.shapes} of '{config.data.title}'. "
            f"Received: '{config.supernet.name}', which takes images (height, width, channels)"
        )
    try:
        return build(**arguments)
    except ValueError as error:
        hint = f"; for '{config.data.title}' set --config.data.image_size to resize its images"
        raise UserError(f"{error}{hint if splits.inputs.are_images else ''}") from None


def _load_weights(model: keras.Model, file: pathlib.Path, name: str) -> None:
    """Gives `model`, built by `name`, the weights in a `.weights.h5` or `.keras` file. Raises UserError."""
    try:
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive:
                stored = _num_variables(io.BytesIO(archive.read("model.weights.h5")))
        else:
            stored = _num_variables(file)
        if stored != len(model.variables):  # Keras ignores layers that are only in the file
            raise ValueError(f"{len(model.variables)} variables expected. Received: {stored}")
        model.load_weights(file)
    except Exception as error:  # whatever zipfile, h5py and Keras raise for a file that is missing or of another model
        reason = user_functions.describe(error)[:_LONGEST]
        raise UserError(f"supernet.weights: {file} has no weights of '{name}' ({reason})") from None


def _num_variables(file: Any) -> int:
    """Number of variables of the layers in an HDF5 file of weights."""
    found: list[str] = []
    with h5py.File(file) as stored:
        stored["layers"].visititems(lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None)
    return len(found)


def _check_network(model: Any, source: str, splits: pipeline.Splits) -> None:
    if not isinstance(model, keras.Model):
        raise UserError(f"supernet.source: '{source}' must return a keras.Model. Received: {type(model).__name__}")
    if not model.built or not getattr(model, "inputs", None):
        raise UserError(
            f"supernet.source: '{source}' must return a functional or Sequential model with an Input. "
            f"Received: {type(model).__name__}"
        )
    _check_inputs(model, source, splits)
    if splits.output_names:
        _check_outputs(model, source, splits)
        return
    if len(model.outputs) != 1 or isinstance(getattr(model, "output", None), dict):
        raise UserError(
            f"supernet.source: the model of '{source}' must have one output, without a name. Received: "
            f"{len(model.outputs)}; several need task='custom', and a dict of targets by their names from data.source"
        )
    returns, head = tuple(model.outputs[0].shape), splits.head
    if head is not None and not _fits(returns, head):
        raise UserError(
            f"supernet.source: the model of '{source}' must return {splits.task.per_output.format(head)}. "
            f"Received: output {returns}"
        )
    last = model.layers[-1]
    activation = activation_of(model.outputs[0])
    if activation in splits.task.squashing:
        raise UserError(
            f"supernet.source: the model of '{source}' must return logits. Received: a {activation} in '{last.name}'"
        )


def _check_inputs(model: keras.Model, source: str, splits: pipeline.Splits) -> None:
    named, shapes = splits.inputs.named, input_shapes(model)
    wanted = {name: (None, *one.shape) for name, one in splits.inputs.by_name.items()}
    if named and set(shapes) != set(wanted):
        raise UserError(
            f"supernet.source: the model of '{source}' must have the inputs {', '.join(sorted(wanted))}, as the data "
            f"have. Received: {', '.join(sorted(shapes))}; name them, as by keras.Input(shape, name=...)"
        )
    if len(shapes) != len(wanted):
        raise UserError(
            f"supernet.source: the model of '{source}' must have one input. Received: {len(shapes)}; return examples "
            f"with a dict of inputs by these names, {', '.join(sorted(shapes))}, from data.source"
        )
    if not named:  # the only one may have any name
        shapes = dict(zip(wanted, shapes.values(), strict=True))
    for name, expected in wanted.items():
        takes = shapes[name]
        if len(takes) != len(expected) or any(a not in (None, b) for a, b in zip(takes, expected, strict=True)):
            what = f"'{name}' of shape" if named else splits.inputs.nouns
            raise UserError(
                f"supernet.source: the model of '{source}' must take {what} {expected}. Received: input {takes}"
            )


def _check_outputs(model: keras.Model, source: str, splits: pipeline.Splits) -> None:
    output = getattr(model, "output", None)
    found = sorted(output) if isinstance(output, dict) else []
    if found != sorted(splits.output_names):
        raise UserError(
            f"supernet.source: the model of '{source}' must return a dict of the outputs "
            f"{', '.join(splits.output_names)}, as the targets are named. Received: "
            f"{', '.join(found) or f'{len(model.outputs)} without names'}"
        )


def _check_functions(config: config_lib.Config, model: keras.Model, splits: pipeline.Splits) -> None:
    """Raises UserError unless a loss and a metric of several outputs give one number for each example."""
    for given, targets, *_ in pipeline.evaluation_batches(splits.validation.take(2), config.data, 2):
        outputs = in_float32(model(given, training=False))
        count = keras.tree.flatten(outputs)[0].shape[0]
        for key, (name, function) in splits.task.own_functions().items():
            values = user_functions.call(key, name, function, targets, outputs)
            if (shape := tuple(tf.convert_to_tensor(values).shape)) != (count,):
                raise UserError(
                    f"{key}: '{name}' must return one number for each example, of all targets and outputs together. "
                    f"Received: shape {shape} for {count} examples"
                )


def input_shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    """Shapes of a functional model's inputs, by the names by which it takes them from a dict."""
    given = getattr(model, "input", None)  # which a Sequential model may not have
    tensors = given if isinstance(given, dict) else {x.name: x for x in model.inputs}
    return {name: tuple(getattr(x, "shape", ())) for name, x in tensors.items()}


def _fits(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a shape is what is expected, or may be where it is not fixed; the last axis must be."""
    if len(shape) != len(expected) or shape[-1] != expected[-1]:
        return False
    return all(a in (None, b) for a, b in zip(shape, expected, strict=True))
