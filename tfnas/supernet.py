"""Supernet: a Keras model whose layers are gated, trained on the ELBO."""

from __future__ import annotations

import contextlib
import fnmatch
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas import elbo
from tfnas.architecture import Architecture
from tfnas.channels import Graph, Node, is_gateable
from tfnas.errors import UserError
from tfnas.gates import Gated
from tfnas.kinds import CHOICES, CUT_KINDS
from tfnas.posterior import RESOURCES, LayerGates, Posterior

PRIORS = ("uniform", *RESOURCES)


def gate(
    model: keras.Model,
    *,
    ell2: float,
    num_examples: float,
    temperature: float = 0.2,
    initial_drop: float = 0.1,
    gate_learning_rate: float = 1.0,
    prior: str = "uniform",
    gate_dense: bool = False,
    gate_pooling: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    seed: int = 0,
) -> Supernet:
    """A super-network of `model`: its weights, and a gate on the input channels of every convolution it may narrow.

    Left alone are the stem (convolutions with no other before them: their input is the picture) and the classifier
    (convolutions and dense layers with no other after them). Where a convolution's input is a concatenation, each
    source has a drop probability of its own.

    Args:
        model: functional or Sequential Keras model, channels last. Not changed. Nested models are taken apart.
        ell2: squared prior length scale, > 0; larger gives a smaller network.
        num_examples: N, training examples seen as distinct: about 10 x the data set under strong augmentation.
        temperature: of the relaxed gates, > 0.
        initial_drop: drop probability before the first step, in (0, 1).
        gate_learning_rate: the gates' learning rate as a multiple of the weights'. 1 is the paper's; a run of few
            epochs wants 3 to 10, or an ell2 ten times larger. Too much of either drops everything.
        prior: 'uniform': ell2 is that of every weight. 'parameters' or 'multiply_adds': each layer's is ell2 times a
            factor, such that at initialisation a channel is pressed in proportion to the kernel weights, or to the
            multiply-adds, that it costs, and all channels together as hard as with 'uniform' (`elbo.cost_factors`).
        gate_dense: gate dense layers too, but for the classifier.
        gate_pooling: gate pooling and `Identity` layers too, so that these operations can be dropped; each such gate is
            priced as a 1x1 convolution that passes its channel on, and costs nothing at inference.
        include: glob patterns of names; if given, exactly the layers that match are gated, whatever they are.
        exclude: glob patterns of names never gated.
        seed: of the gates' noise.

    Returns:
        A `Supernet`, ready for `compile` and `fit`.

    Raises:
        UserError: naming the layer that the graph cannot follow or that cannot be gated; a pattern that matches
            nothing; no layer to gate; an unknown prior, or 'multiply_adds' where the input has no fixed size.
        ValueError: for a number out of range.
    """
    graph = Graph(model)
    gated = _chosen(graph, gate_dense, gate_pooling, _patterns(include), _patterns(exclude))
    layers: dict[str, keras.Layer] = {}

    def make(node: Node) -> Any:
        if not isinstance(node.layer, keras.Layer):
            return node.layer
        layer = node.layer.__class__.from_config({**node.layer.get_config(), "name": node.name})
        if node.name in gated:
            layer = Gated(
                layer,
                group_sizes=graph.group_sizes(node.name),
                temperature=temperature,
                initial_drop=initial_drop,
                # Distinct and stable noise for every layer, whatever the order of construction.
                seed=zlib.crc32(f"{seed}/{node.name}".encode()) % 2**31,
                name=node.name,
            )
        layers[node.name] = layer
        return layer

    network = graph.rebuild(make)
    for node in graph.nodes:
        if getattr(node.layer, "weights", None):
            twin = layers[node.name]
            copy_weights(twin.layer if isinstance(twin, Gated) else twin, node.layer.get_weights())
    return Supernet(network, ell2=ell2, num_examples=num_examples, gate_learning_rate=gate_learning_rate, prior=prior)


def copy_weights(layer: keras.Layer, weights: Sequence[np.ndarray]) -> None:
    """`layer.set_weights`, and what `Normalization` derives from its weights made anew."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _chosen(
    graph: Graph, gate_dense: bool, gate_pooling: bool, include: tuple[str, ...], exclude: tuple[str, ...]
) -> set[str]:
    """Names of the nodes to gate."""

    def matches(node: Node, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(node.name, pattern) for pattern in patterns)

    for pattern in (*include, *exclude):
        if not any(matches(node, (pattern,)) for node in graph.nodes):
            raise UserError(
                f"gate: no layer matches {pattern!r}; there are {', '.join(n.name for n in graph.nodes[:8])}, ..."
            )
    chosen = set()
    for i, node in enumerate(graph.nodes):
        if matches(node, exclude):
            continue
        grouped = node.kind == "opaque" and getattr(node.inner, "groups", 1) > 1 and hasattr(node.inner, "kernel_size")
        if (matches(node, include) if include else grouped) and not is_gateable(node):
            what = f"a grouped convolution ({node.inner.groups} groups)" if grouped else type(node.inner).__name__
            raise UserError(
                f"gate: layer '{node.name}' is {what} and cannot be gated: leave it whole with exclude='{node.name}'"
            )
        if include:
            if matches(node, include):
                chosen.add(node.name)
        elif isinstance(node.inner, CHOICES):
            if gate_pooling and graph.sees_kernel[i]:
                chosen.add(node.name)
        elif node.kind in CUT_KINDS:
            wanted = gate_dense or not isinstance(node.inner, keras.layers.Dense)
            if wanted and graph.sees_kernel[i] and graph.feeds_kernel[i]:
                chosen.add(node.name)
    if not chosen:
        raise UserError(
            f"gate: model '{graph.model.name}' has no convolution to gate besides its stem and classifier; "
            "gate_dense=True or include='NAME' gates more"
        )
    return chosen


@keras.saving.register_keras_serializable("tfnas")
class Supernet(keras.Model):
    """A gated network whose training loss is the ELBO (method.md, section 2); made by `gate`.

    Attributes:
        network: the functional model whose layers are `Gated`.
        gated_layers: its `Gated` layers by name, in the graph's order.
        prior_factors: of ell2, one for each of them; empty for the prior 'uniform'.
    """

    def __init__(
        self,
        network: keras.Model,
        ell2: float,
        num_examples: float,
        gate_learning_rate: float = 1.0,
        prior: str = "uniform",
        **kwargs: Any,
    ):
        for name, value in (("ell2", ell2), ("num_examples", num_examples), ("gate_learning_rate", gate_learning_rate)):
            if not value > 0:
                raise ValueError(f"Supernet: {name} must be greater than 0. Received: {name}={value}")
        if prior not in PRIORS:
            raise UserError(f"gate: prior must be one of {', '.join(map(repr, PRIORS))}. Received: {prior!r}")
        # Not the global policy: under a mixed one the regulariser's kernels would be rounded before they are squared.
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.network = network
        self.ell2 = ell2
        self.num_examples = num_examples
        self.gate_learning_rate = gate_learning_rate
        self.prior = prior
        self.graph = Graph(network)
        self.gated_layers = {n.name: n.layer for n in self.graph.nodes if isinstance(n.layer, Gated)}
        self.prior_factors = () if prior == "uniform" else self._factors()
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The network's output; in training, also adds the regulariser to the losses."""
        if training:
            self.add_loss(self.regulariser())
        return self.network(inputs, training=training)

    def regulariser(self) -> tf.Tensor:
        """What the ELBO adds to the mean negative log likelihood, float32 scalar."""
        pairs = [(layer.channel_logits(), layer.squared_norms()) for layer in self.gated_layers.values()]
        return elbo.regulariser(pairs, self.ell2, self.num_examples, self.prior_factors)

    def _factors(self) -> tuple[float, ...]:
        costs = []
        for name, layer in self.gated_layers.items():
            price = layer.parameters_per_channel() if self.prior == "parameters" else self._multiply_adds(name)
            if price is None:
                raise UserError(
                    f"gate: prior='{self.prior}' needs a model whose input has a fixed size; layer '{name}' has none"
                )
            costs.append(price)
        layers = self.gated_layers.values()
        channels = [sum(layer.group_sizes) for layer in layers]
        return elbo.cost_factors(channels, [layer.unit_gain_norm() for layer in layers], costs)

    def _multiply_adds(self, name: str) -> int | None:
        """Of one input channel of a gated layer; None where the image size is not fixed."""
        positions = self.graph.positions(self.graph.nodes[self.graph.index[name]])
        return None if positions is None else self.gated_layers[name].parameters_per_channel() * positions

    def compile(self, optimizer: Any = "sgd", **kwargs: Any) -> None:
        """As `keras.Model.compile`; any weight decay of the optimizer spares the gates' logits."""
        optimizer = keras.optimizers.get(optimizer)
        if getattr(optimizer, "weight_decay", None):
            optimizer.exclude_from_weight_decay(var_names=["drop_logit"])
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a reloaded model as it was; needed because `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on the ELBO, as Keras's `fit` takes it."""
        with self.stretched():
            return super().train_step(data)

    @contextlib.contextmanager
    def stretched(self) -> Iterator[None]:
        """Stretches the step that an optimizer takes meanwhile on the logits to `gate_learning_rate` times its length.

        Stretching the step, not the gradient, is a learning rate in the exact sense for every optimizer.
        """
        logits = [layer.drop_logit for layer in self.gated_layers.values()] if self.gate_learning_rate != 1.0 else []
        before = [tf.identity(tf.convert_to_tensor(logit)) for logit in logits]
        yield
        for logit, old in zip(logits, before, strict=True):
            logit.assign(old + self.gate_learning_rate * (tf.convert_to_tensor(logit) - old))

    def posterior(self) -> Posterior:
        """The gates' present drop probabilities."""

        def gates(name: str, layer: Gated) -> LayerGates:
            return LayerGates(
                name=name,
                group_sizes=layer.group_sizes,
                drop_probability=tuple(layer.drop_probability().tolist()),
                parameters_per_channel=layer.parameters_per_channel(),
                multiply_adds_per_channel=self._multiply_adds(name),
            )

        return Posterior(tuple(gates(name, layer) for name, layer in self.gated_layers.items()))

    def set_architecture(self, architecture: Architecture) -> None:
        """Makes inference use `architecture`'s hard masks. Raises UserError if its layers are not this supernet's."""
        if set(architecture) != set(self.gated_layers):
            odd = sorted(set(architecture) ^ set(self.gated_layers))
            raise UserError(f"architecture: its layers are not this supernet's; the first that differs is '{odd[0]}'")
        for name, layer in self.gated_layers.items():
            if architecture[name].shape != layer.mask.shape:
                raise UserError(
                    f"architecture: '{name}' has {layer.mask.shape[0]} input channels. "
                    f"Received: {architecture[name].size}"
                )
            layer.mask.assign(architecture[name].astype("float32"))

    def architecture(self) -> Architecture:
        """The hard masks in use."""
        return Architecture({name: np.asarray(layer.mask) > 0.5 for name, layer in self.gated_layers.items()})

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same model."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "ell2": self.ell2,
            "num_examples": self.num_examples,
            "gate_learning_rate": self.gate_learning_rate,
            "prior": self.prior,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Supernet:
        """Inverse of `get_config`."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})
