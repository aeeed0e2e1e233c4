"""Checks of layers' rules: what a supernet computes under a mask, its subnet, costs, ranking and files agree."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import keras
import numpy as np

from tfnas.cutting.subnets import subnet
from tfnas.gating import saving
from tfnas.gating.gates import hard_gates
from tfnas.gating.placement import gate
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_supernet import UnitSupernet
from tfnas.graph.costs import cost
from tfnas.graph.models import deep
from tfnas.graph.partition import PINNED
from tfnas.graph.units import UnitGraph
from tfnas.ranking.engine import Engine
from tfnas.search_space.architecture import Architecture

_BEFORE, _CLASSES, _WIDTH = "before", 3, 5
_TRAINED = 3  # examples


def check_layer(
    layer: Callable[[Any], Any],
    input_shape: Sequence[int] = (6, 6, 8),
    units: int | None = None,
    num_architectures: int = 3,
    seed: int = 0,
) -> int:
    """Checks how a layer is narrowed, in a small model around it; for rules of `tfnas.layers.register`.

    The layer stands between layers whose channels may vanish, and each variable gets new values, so that slices of the
    wrong channels are noticed. Under random architectures, the subnet gives what the supernet gives under the mask, to
    1e-3 relative, at inference and in training; the costs in closed form, those counted on the graph and the parameters
    of the built subnet are equal; ranking computes the same outputs; supernet and subnet do so after they are saved and
    loaded; and the supernet can be trained.

    Args:
        layer: a layer, or a function from a symbolic tensor to another that calls it.
        input_shape: of one example at the layer's input; the last axis has the channels, of which there are at least 2.
        units: how many of the input's channels may vanish, if the number is to be checked: fewer than the channels if
            some exist only together.
        num_architectures: how many are tried.
        seed: of weights, examples and architectures.

    Returns:
        The number of units among the channels of the layer's input.

    Raises:
        AssertionError: saying what differs.
        UserError: as `gate`, if the layer's rule or call does not fit.
    """
    rng = np.random.default_rng(seed)
    model = model_around(layer, input_shape)
    for variable in model.variables:
        if variable.dtype.startswith("float") and "seed" not in variable.path:
            variable.assign_add(rng.uniform(0.05, 0.3, variable.shape))
    examples = rng.normal(size=(7, *model.inputs[0].shape[1:])).astype("float32")
    supernet = check_model(model, examples, num_architectures=num_architectures, seed=seed)
    found = num_units(supernet.graph, _BEFORE)
    if units is not None and found != units:
        raise AssertionError(f"{units} units expected among the channels of the layer's input. Found: {found}")
    if not found:
        raise AssertionError("no channel of the layer's input can vanish: the layer is left whole")
    return found


def model_around(layer: Callable[[Any], Any], input_shape: Sequence[int]) -> keras.Model:
    """A classifier of 3 classes with a layer between two others; the first of them is named 'before'."""
    layers = keras.layers
    *sizes, channels = input_shape
    mixing = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
    vector = keras.Input((*sizes, 2))
    x: Any
    if sizes:
        x = mixing[len(sizes)](channels, 3, padding="same", activation="relu", name=_BEFORE)(vector)
    else:
        x = layers.Dense(channels, activation="relu", name=_BEFORE)(vector)
    x = layer(x)
    if len(x.shape) > 2:
        x = mixing[len(x.shape) - 2](_WIDTH, min(3, *x.shape[1:-1]), activation="relu", name="after")(x)
        x = keras.ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))
    hidden = layers.Dense(_WIDTH, activation="tanh", name="hidden")(x)
    return keras.Model(vector, layers.Dense(_CLASSES, name="classifier")(hidden))


def check_model(
    model: keras.Model,
    examples: Any,
    num_architectures: int = 3,
    seed: int = 0,
    everything: bool = True,
    **options: Any,
) -> UnitSupernet:
    """Checks a classifier's supernet of channel units as `check_layer` does; returns the supernet.

    Args:
        model: that gives logits; not changed.
        examples: some inputs.
        num_architectures, seed: as of `check_layer`.
        everything: whether ranking, files and a step of training are checked too.
        options: of `gate`.

    Raises:
        AssertionError: saying what differs.
        UserError: as `gate`.
    """
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {"parameters": 0.95, "steps": 10, "num_examples": 100, **options}
    supernet = cast(UnitSupernet, gate(model, **given))
    supernet.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.zeros(len(examples), int)
    _check_equal(supernet(examples), model(examples), "the supernet without masks and the model")
    engine = Engine(supernet, (examples, labels)) if everything else None
    cut = None
    for architecture in _architectures(supernet.graph, rng, num_architectures):
        supernet.set_architecture(architecture)
        try:
            cut = subnet(supernet, architecture)
        except (ValueError, TypeError, IndexError, KeyError) as error:  # whatever NumPy, Keras and the layer raise
            raise AssertionError(f"no subnet can be built of it: {type(error).__name__}: {error}") from error
        expected = cut(examples)
        _check_equal(supernet(examples), expected, "the supernet under a mask and its subnet")
        if engine is not None:
            _check_equal(engine.outputs(architecture), expected, "ranking and the subnet")
        _check_costs(supernet, architecture, cut)
        with hard_gates():
            before = supernet.get_weights()
            trained = supernet.network(examples, training=True)
            supernet.set_weights(before)
        _check_equal(trained, cut(examples, training=True), "supernet and subnet, called for training,")
    if everything and cut is not None:
        _check_files(supernet, cut, examples)
        supernet.fit(examples[:_TRAINED], labels[:_TRAINED], verbose=0)
        if not np.isfinite(np.asarray(supernet(examples))).all():
            raise AssertionError("after a step of training, the supernet's outputs are not finite")
    return supernet


def num_units(graph: UnitGraph, name: str) -> int:
    """Number of units among the output channels of a node."""
    units = graph.of[graph.index[name]]
    return len(set(units[units != PINNED].tolist()))


def _architectures(graph: UnitGraph, rng: np.random.Generator, count: int) -> Iterator[Architecture]:
    for _ in range(count):
        rates = rng.choice([0.3, 0.6, 1.0], len(graph.groups))
        masks = {g.name: rng.random(g.size) < rate for g, rate in zip(graph.groups, rates, strict=True)}
        yield graph.closed(Architecture(masks))


def _check_costs(supernet: UnitSupernet, architecture: Architecture, cut: keras.Model) -> None:
    form = supernet.graph.form
    counts = form.counts(np.array([architecture[group.name].sum() for group in form.groups]))
    counted = cost(supernet.graph, architecture)
    built = sum(int(np.prod(v.shape)) for v in cut.trainable_variables)
    if counted.parameters != built or not np.isclose(counts["parameters"], built, rtol=1e-12):
        raise AssertionError(
            f"the subnet has {built:,} parameters; counted: {counted.parameters:,}, in closed form "
            f"{float(counts['parameters']):,.2f}"
        )
    if counted.multiply_adds is not None and not np.isclose(counts["multiply_adds"], counted.multiply_adds):
        raise AssertionError(
            f"{counted.multiply_adds:,} multiply-adds counted, {float(counts['multiply_adds']):,.2f} in closed form"
        )


def _check_files(supernet: UnitSupernet, cut: keras.Model, examples: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, deep():
        for model, kind in ((cut, keras.Model), (supernet, Supernet)):
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
            loaded = saving.load_model(path, kind)
            _check_equal(loaded(examples), model(examples), f"a {kind.__name__} saved and loaded, and itself,")


def _check_equal(found: Any, expected: Any, what: str) -> None:
    """Raises AssertionError unless outputs are the same but for rounding, which grows with the largest."""
    for g, e in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        g, e = np.asarray(g), np.asarray(e)
        if g.shape != e.shape:
            raise AssertionError(f"{what} differ in shape: {g.shape} and {e.shape}")
        if not np.allclose(g, e, rtol=1e-3, atol=1e-4 * max(1e-3, np.abs(e).max())):
            raise AssertionError(
                f"{what} differ by up to {np.abs(g - e).max():.3g}, of outputs up to {np.abs(e).max():.3g}"
            )
