"""Supernet: a Keras model whose channels may be dropped, trained on the ELBO; and the published kind."""

from __future__ import annotations

import abc
import functools
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import markup
from tfnas.common.errors import UserError, brief
from tfnas.gating import elbo, optimizers
from tfnas.gating.gates import Gated, Gating, gates_as, hard_gates
from tfnas.graph.channels import Graph
from tfnas.graph.models import deep
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.bernoulli import DECIDED
from tfnas.search_space.layer_gates import LayerGates
from tfnas.search_space.posterior import Posterior

PRIORS = ("uniform", "constant")


class Supernet(keras.Model, abc.ABC):
    """A gated network whose training loss is the ELBO (method.md, section 2); made by `gate`.

    Attributes:
        network: the functional model with gates.
        graph: of the network; its architectures are the supernet's.
        num_examples: N, training examples seen as distinct; None where nothing is divided by it.
        bounds: largest cost by resource; empty for the published search.
    """

    gate_rates: dict[str, float] = {}  # defaults of `GatedOptimizer`
    bounds: dict[str, float] = {}
    _training_gates = Gating.BY_CALL

    def __init__(self, network: keras.Model, graph: Graph, num_examples: float | None, **kwargs: Any):
        if num_examples is not None and not num_examples > 0:
            raise ValueError(f"Supernet: num_examples must be greater than 0. Received: num_examples={num_examples}")
        # Not the global policy: under a mixed one the regularizer's kernels would be rounded before they are squared.
        # Nor are inputs cast to it: the network casts them, to float64 where it computes in that.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.network = network
        self.graph = graph
        self.num_examples = num_examples
        self.built = True
        # What a training loop has done, for a warning.
        self._called_for_training = self._losses_are_read = self._warned = False

    def __repr__(self) -> str:
        # While a step is traced, no variable has a value.
        words = f" {self._words()}" if tf.executing_eagerly() else ""
        words += "".join(f"; left whole: '{name}', because {why}" for name, why in self.graph.untraced.items())
        return f"<{type(self).__name__} '{self.name}'{words}>"

    @abc.abstractmethod
    def _words(self) -> str:
        """Describes the gates, for `repr`."""

    @property
    def output_names(self) -> list[str]:
        """Names of the gated model's outputs, by which `compile` accepts losses and metrics."""
        return self.network.output_names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The network's output; in training, also adds the regularizer to the losses.

        If `training` is None, the value with which each layer was called applies, as in any Keras model.
        """
        if training:
            self._called_for_training = True
            self.add_loss(self.regularizer())
            with gates_as(self._training_gates):
                return self.network(inputs, training=True)
        with hard_gates():
            return self.network(inputs, training=training)

    @abc.abstractmethod
    def regularizer(self) -> tf.Tensor:
        """Regularizer of the ELBO, to be added to the mean negative log likelihood, float32 scalar."""

    @abc.abstractmethod
    def progress(self) -> dict[str, tf.Tensor]:
        """Values that `fit` reports about the gates, float32 scalars."""

    @abc.abstractmethod
    def posterior(self) -> Any:
        """The gates' present probabilities."""

    @abc.abstractmethod
    def set_architecture(self, architecture: Architecture) -> None:
        """Sets `architecture`'s hard masks for inference. Raises UserError if it is not this supernet's."""

    @abc.abstractmethod
    def architecture(self) -> Architecture:
        """The hard masks in use."""

    def after_step(self) -> None:
        """Does all that a search needs after a step of the optimizer.

        Call this once after every step of a training loop of your own, outside of any tf.function; `fit` does so by
        itself. If another model's `fit` trains the supernet, such as `keras.distillation.Distiller`'s, pass it the
        callback `keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: supernet.after_step())`.

        Raises:
            UserError: within a tf.function.
        """
        if not tf.executing_eagerly():
            raise UserError(
                "after_step: called within a tf.function; call it once after every step, outside, because units are "
                "dropped between steps"
            )
        self._update()
        self.between_steps()

    @functools.cached_property
    def _update(self) -> Any:
        return tf.function(self.update, autograph=False)

    def update(self) -> None:
        """Updates what depends on the gates' progress; the part of `after_step` that may be in a step's graph."""

    def between_steps(self, step: int | None = None, taken: int = 1) -> None:
        """Does what cannot be part of a step's graph; the other part of `after_step`.

        Args:
            step: optimizer steps so far; None: as counted by `update`, which waits for the device.
            taken: how many of them since the last call.
        """

    def _trained_steps(self) -> int | None:
        """Number of steps counted by `update` since gates were set up that now have moved; None if they have not."""
        return None

    def _get_own_losses(self) -> Any:
        self._losses_are_read = True
        return super()._get_own_losses()

    def _check_training(self) -> None:
        """Warns once if a training loop has moved the gates but left out what brings them to the bounds."""
        if self._warned or (steps := self._trained_steps()) is None:
            return
        if not steps:
            lacking = "the multipliers stood still: call supernet.after_step() after every step of the optimizer"
        elif self._called_for_training and not self._losses_are_read:
            lacking = "the regularizer is not in the loss: add sum(supernet.losses) to it"
        else:
            return
        self._warned = True
        warnings.warn(f"the gates were trained, but nothing brings them to the bounds: {lacking}", stacklevel=3)

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the supernet as `keras.Model.save` does, with a warning as of `posterior`."""
        self._check_training()
        super().save(filepath, overwrite=overwrite, **kwargs)

    def compile(self, optimizer: Any = "sgd", loss: Any = None, *, auto_scale_loss: bool = True, **kwargs: Any) -> None:
        """Like `keras.Model.compile`, with any Keras optimizer; the gates' logits are never decayed.

        Args:
            optimizer: of the weights, or its name; the gates are stepped as by `optimizers.GatedOptimizer`, with its
                defaults unless it is one: by Adam under bounds, else as the weights are.
            loss: as for Keras.
            auto_scale_loss: scale the loss if a layer computes in float16, as Keras does for a model of that policy.
            kwargs: further arguments of `keras.Model.compile`.
        """
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is not None:
            optimizer = optimizers.gated(optimizer, **self.gate_rates)
            scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            # Keras would look at the supernet's own policy, which is float32 because of the regularizers.
            if auto_scale_loss and not scaled and self._computes_in_float16():
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer=optimizer, loss=loss, auto_scale_loss=False, **kwargs)
        for made in (getattr(optimizer, "inner_optimizer", optimizer), optimizer):
            if made is not None and not made.built:
                made.build(self.trainable_variables)

    def _computes_in_float16(self) -> bool:
        return any(layer.compute_dtype == "float16" for layer in self.network._flatten_layers())

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a reloaded model as before; Keras needs this because `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config), auto_scale_loss=False)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The compiled loss, as Keras computes it, but for one of several outputs together: that is given all of them.

        Such a loss has the attribute `joint`.
        """
        if not (isinstance(y_pred, dict) and getattr(self.loss, "joint", False)):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        losses = self.loss.call(y, y_pred)
        if sample_weight is not None:
            losses *= sample_weight
        return tf.add_n([tf.reduce_mean(losses), *self.losses])

    def train_step(self, data: Any) -> dict[str, Any]:
        """One training step on the ELBO, called by `fit`."""
        logs = super().train_step(data)
        self.update()
        return {**logs, **self.progress()}


def check_supernet(supernet: object, title: str) -> None:
    """Raises UserError, naming the function `title`, for what is not a supernet."""
    if not isinstance(supernet, Supernet):
        raise UserError(f"{title}: a supernet, as gate returns it, expected. Received: {brief(supernet)}")


def undecided(logits: tf.Tensor) -> tf.Tensor:
    """Number of gates with a probability from 0.05 to 0.95, float32 scalar, from their logits."""
    p = tf.sigmoid(logits)
    return tf.reduce_sum(tf.cast((p >= DECIDED) & (p <= 1 - DECIDED), tf.float32))


@keras.saving.register_keras_serializable("tfnas")
class PublishedSupernet(Supernet):
    """The supernet of the published search: gates on the input channels of layers, and a length scale as prior.

    Attributes:
        gated_layers: its `Gated` layers by name, in the graph's order.
        ell2: squared prior length scale.
        prior: 'uniform' or 'constant' (`gate`).
    """

    num_examples: float
    gate_rates = {"gate_learning_rate": 1.0}

    def __init__(self, network: keras.Model, num_examples: float, ell2: float, prior: str = "uniform", **kwargs: Any):
        if not ell2 > 0:
            raise ValueError(f"Supernet: ell2 must be greater than 0. Received: ell2={ell2}")
        if prior not in PRIORS:
            raise UserError(f"gate: prior must be one of {', '.join(map(repr, PRIORS))}. Received: {prior!r}")
        super().__init__(network, Graph(network), num_examples, **kwargs)
        self.ell2 = ell2
        self.prior = prior
        self.gated_layers = {n.name: n.layer for n in self.graph.nodes if isinstance(n.layer, Gated)}

    def _words(self) -> str:
        posterior = self.posterior()
        share = markup.percent(posterior.expected_cost() / posterior.total_cost())
        return f"of {len(self.gated_layers):,} gated layers, ell2={self.ell2:g}: {share} of the kernel weights expected"

    def regularizer(self) -> tf.Tensor:
        """Eq. 15 / N, float32 scalar."""
        pairs = [(layer.channel_logits(), layer.squared_norms()) for layer in self.gated_layers.values()]
        return elbo.regularizer(pairs, self.ell2, self.num_examples, self.prior != "constant")

    def progress(self) -> dict[str, tf.Tensor]:
        """Values that `fit` reports about the gates, float32 scalars.

        `kept`: the expected share of the gated layers' kernel weights. `undecided`: how many gates have a drop
        probability from 0.05 to 0.95.
        """
        layers = self.gated_layers.values()
        logits = tf.concat([tf.convert_to_tensor(layer.drop_logit) for layer in layers], axis=0)
        weights = [layer.parameters_per_channel() for layer in layers]
        total = sum(w * sum(layer.group_sizes) for w, layer in zip(weights, layers, strict=True))
        kept = [
            w / total * tf.reduce_sum(tf.sigmoid(-layer.channel_logits()))
            for w, layer in zip(weights, layers, strict=True)
        ]
        return {"kept": tf.add_n(kept), "undecided": undecided(logits)}

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

    def _multiply_adds(self, name: str) -> int | None:
        """Multiply-adds of one input channel of a gated layer; None if the image size is not fixed."""
        positions = self.graph.nodes[self.graph.index[name]].positions
        return None if positions is None else self.gated_layers[name].parameters_per_channel() * positions

    def source_drop(self) -> dict[str, list[float]]:
        """Mean drop probability of each source of each gated layer's input: few numbers, even with many groups."""
        means = {}
        for name, gates in zip(self.gated_layers, self.posterior().layers, strict=True):
            ends = np.cumsum(self.graph.group_sizes(name))[:-1]
            means[name] = [float(part.mean()) for part in np.split(gates.channel_drop, ends)]
        return means

    def set_architecture(self, architecture: Architecture) -> None:
        """Sets `architecture`'s hard masks for inference. Raises UserError if its layers are not this supernet's."""
        if set(architecture) != set(self.gated_layers):
            differing = sorted(set(architecture) ^ set(self.gated_layers))
            where = "the architecture" if differing[0] in architecture else "the supernet"
            raise UserError(
                "architecture: the layers of this supernet expected. Received: others; "
                f"'{differing[0]}' is only in {where}"
            )
        for name, layer in self.gated_layers.items():
            if architecture[name].shape != layer.mask.shape:
                raise UserError(
                    f"architecture: '{name}': a mask of {layer.mask.shape[0]} input channels expected. "
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
            "num_examples": self.num_examples,
            "ell2": self.ell2,
            "prior": self.prior,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PublishedSupernet:
        """Inverse of `get_config`."""
        with deep():
            network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})
