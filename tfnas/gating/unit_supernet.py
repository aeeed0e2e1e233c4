"""UnitSupernet: a supernet with a gate for each channel unit, and bounds on the cost of what is found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnas.common import markup
from tfnas.common.errors import UserError, brief
from tfnas.common.resources import Resource
from tfnas.config import FLOOR
from tfnas.gating.importances import ROUNDS, Importance, by_curvature, check_importance, scored_posterior
from tfnas.gating.supernet import Supernet
from tfnas.gating.unit_gates import UnitDraw
from tfnas.gating.unit_placement import GatedNetwork
from tfnas.gating.unit_training import Bounded, ByCurvature, ByGates, ByScale, Training, scale_penalty
from tfnas.graph import pins
from tfnas.graph.latencies import Latencies
from tfnas.graph.models import deep
from tfnas.graph.units import UnitGraph
from tfnas.search_space.architecture import Architecture
from tfnas.search_space.closed_form import ClosedForm
from tfnas.search_space.unit_posterior import UnitPosterior


@keras.saving.register_keras_serializable("tfnas")
class UnitSupernet(Supernet):
    """A supernet whose channel units may vanish (method.md, section 9); made by `gate` with bounds.

    Args:
        graph: of the network without gates, whose layers become part of the supernet.
        num_examples: N, training examples seen as distinct; of importance 'gates' only.
        bounds: largest cost by resource, absolute.
        steps: training steps in which the expected costs are to reach the bounds.
        noise, temperature, initial_drop, seed: of `UnitDraw`, for importance 'gates'.
        latencies: measured ones, of which the latency's closed form is made; None: only costs that are counted.
        channel_multiple: of the posterior's candidates.
        importance: of `IMPORTANCES`, or a function; None: of a function that was not saved.
        iterative: of `gate`.
        floor: of `gate`.
        scale_penalty: of `gate`; None: `unit_training.scale_penalty`.

    Attributes:
        network: the functional model with gates.
        graph: the `UnitGraph` of the network without gates, which is made of the same layers.
        form: costs in closed form.
        draw: the `UnitDraw`, with the units' variable.
        learning: what `fit` does for the importance, and its state.
    """

    graph: UnitGraph
    train_function: Any

    def __init__(
        self,
        graph: UnitGraph,
        num_examples: float | None,
        bounds: Mapping[str, float],
        steps: int,
        noise: str = "batch",
        temperature: float = 0.2,
        initial_drop: float = 0.02,
        seed: int = 0,
        latencies: Latencies | Mapping[str, Any] | None = None,
        channel_multiple: int = 1,
        importance: Importance | None = "gates",
        iterative: bool = True,
        floor: float = FLOOR,
        scale_penalty: float | None = None,
        **kwargs: Any,
    ):
        sizes = [group.size for group in graph.groups]
        relaxed = noise if importance == "gates" else None
        draw = UnitDraw(sizes, relaxed, temperature, initial_drop, seed, name=_free_name("unit_draw", graph))
        gated = GatedNetwork(graph, draw)
        super().__init__(gated.network, graph, num_examples, **kwargs)
        self.bounds = dict(bounds)
        self.steps = steps
        self.noise = noise
        self.channel_multiple = channel_multiple
        self.importance = importance
        self.iterative = iterative
        self.floor = floor
        self.scale_penalty = scale_penalty
        self.draw = draw
        self._gated = gated
        self.latencies = Latencies(**latencies) if isinstance(latencies, Mapping) else latencies
        self.form = costs_of(graph, self.latencies)
        self.learning = self._learning()
        self._training_gates = self.learning.gating
        draw.trainable = isinstance(self.learning, Bounded)

    def _learning(self) -> Training:
        if self.importance == "gates":
            return ByGates(self, self.draw, self.num_examples or 1.0, self.form, self.bounds, self.steps)
        if self.importance == "curvature" and self.iterative:
            return ByCurvature(self, self.draw, self.form, self.bounds, self.steps, self.channel_multiple)
        if self.importance == "scale":
            penalty = scale_penalty(self.steps) if self.scale_penalty is None else self.scale_penalty
            return ByScale(self.graph, penalty)
        return Training()

    def _words(self) -> str:
        bounds = {resource: markup.percent(bound / self.form.full(resource)) for resource, bound in self.bounds.items()}
        units, shares = f"of {self.graph.num_units:,} units", self.learning.expected_shares()
        if shares is None:
            words = ", ".join(f"{share} of the {Resource(resource).words}" for resource, share in bounds.items())
            return f"{units}, without gates in training; bounds: {words}; {self.removable()}"
        words = ", ".join(
            f"{markup.percent(share)} of the {Resource(resource).words} expected (bound: {bounds[resource]})"
            for resource, share in zip(self.bounds, shares.numpy().tolist(), strict=True)
        )
        return f"{units}: {words}; {self.removable()}"

    def removable(self) -> str:
        """Says how much of each resource the candidates can lack at most, and the layers that keep whole streams."""
        shares = pins.removable(self.form, self.channel_multiple).items()
        words = " and ".join(
            f"{markup.percent(math.floor(1000 * share) / 1000)} of the {Resource(resource).words}"
            for resource, share in shares
        )
        stays = "".join(
            f"; the stream of '{stream}' stays for {', '.join(map(repr, names[:3]))}{', ...' * (len(names) > 3)}"
            for stream, names in pins.stream_pins(self.graph).items()
        )
        return f"at most {words} can go{stays}"

    def regularizer(self) -> tf.Tensor:
        """Term added to the mean negative log likelihood, float32 scalar.

        By 'gates', the negative entropy of the units / N, and each multiplier times the expected share; by 'scale', the
        penalty of the scales; else 0.
        """
        return self.learning.regularizer()

    def update(self) -> None:
        """Updates the state of learning, such as multipliers, and counts the step."""
        self.learning.update()

    def between_steps(self, step: int | None = None, taken: int = 1) -> None:
        """Drops units if it is time, with importance 'curvature'."""
        self.learning.between_steps(step, taken)

    def _trained_steps(self) -> int | None:
        return self.learning.steps() if isinstance(self.learning, ByGates) and self.learning.moved else None

    def make_train_function(self, force: bool = False) -> Any:
        """Like Keras's; the function also does what is done between steps."""
        known = self.train_function
        super().make_train_function(force)
        if isinstance(self.learning, ByCurvature):
            self.learning.starts()
            if (steps := self.train_function) is not known:

                def function(iterator: Any) -> Any:
                    logs = steps(iterator)
                    self.between_steps(None, self.steps_per_execution)
                    return logs

                self.train_function = function
        return self.train_function

    def progress(self) -> dict[str, tf.Tensor]:
        """Values that `fit` reports about the gates, float32 scalars.

        By resource, the expected share, or with importance 'curvature' that of the units kept so far; and by 'gates'
        `undecided`: how many units have a drop probability from 0.05 to 0.95. With other importances, nothing.
        """
        shares = self.learning.expected_shares()
        named = {} if shares is None else dict(zip(self.bounds, tf.unstack(shares), strict=True))
        return {**named, **self.learning.progress()}

    def posterior(
        self,
        importance: Importance | None = None,
        data: Iterable[Any] | None = None,
        floor: float | None = None,
        rounds: int = ROUNDS,
        bounds: Mapping[str, float] | None = None,
    ) -> UnitPosterior:
        """The units' keep probabilities, and the bounds, which its candidates obey.

        By 'gates', they are the present probabilities of the gates, which `fit` trains. By any other importance they
        follow at once from the present weights (method.md, "Importances"), and are at the bounds:

        - 'curvature': half the mean squared gradient of the compiled loss with regard to a unit's gate, on `data`, in
          rounds; or without data, averaged over the steps of `fit`, if the supernet's importance is this one and
          iterative.
        - 'norm': ranks within each group by the squared norm of all weights that go with a unit.
        - 'scale': the scales of the units' normalizations, with one threshold for all groups.
        - 'even': the first units of each group, in equal shares: evenly narrowed.
        - a function from the `UnitGraph` to scores, float, shape (U,), in the order of its groups, which compare
          over all groups: they are weighed against what units cost.

        Args:
            importance: None: the supernet's own.
            data: with 'curvature', batches as `fit` takes them, tuples (inputs, targets) or (inputs, targets, sample
                weights); a few dozen suffice.
            floor: with 'scale', share of each group's units that enter before all others, in [0, 1]; 0: none, as in
                network slimming. None: the supernet's.
            rounds: with data, in how many steps units are dropped; each takes its share of the batches, and gradients
                of the network that is left. 1: gradients of the full network alone, as first-order Taylor pruning.
            bounds: of the candidates, largest cost by resource, absolute; None: the supernet's. The scores of 'gates',
                and of 'curvature' without data, are of training under the supernet's in any case.

        Warns once if the gates were trained by a loop that leaves out `after_step` or the regularizer.

        Raises:
            UserError: for another importance, or one that needs data, training or a compiled supernet first; 'scale' if
                there is no normalization; scores of a function that are not one finite number for each unit; or bounds
                out of reach.
        """
        self._check_training()
        importance = self.importance if importance is None else importance
        bounds = self.bounds if bounds is None else dict(bounds)
        if importance is None:
            raise UserError(
                "posterior: this supernet was gated with a function as its importance, which is not saved: pass it "
                "again, posterior(function)"
            )
        check_importance(importance, "posterior")
        if data is not None:
            return self._by_curvature(importance, data, rounds, bounds)
        if importance == "curvature":
            if isinstance(self.learning, ByCurvature):
                return dataclasses.replace(self.learning.posterior(), bounds=bounds)
            raise UserError("posterior: importance 'curvature' needs data: batches as fit takes them")
        if importance == "gates":
            if not isinstance(self.learning, ByGates):
                raise UserError(
                    "posterior: importance 'gates' is learned by training with gates, and this supernet's is "
                    f"{brief(self.importance)}: gate the model with importance='gates'"
                )
            logits = np.asarray(self.draw.keep_logit, np.float64)
            return UnitPosterior(self.form, tuple(logits.tolist()), bounds, self.channel_multiple)
        floor = self.floor if floor is None else floor
        return scored_posterior(self.graph, importance, bounds, self.channel_multiple, floor, self.form)

    def _by_curvature(
        self, importance: Importance, data: Iterable[Any], rounds: int, bounds: Mapping[str, float]
    ) -> UnitPosterior:
        """The posterior by gradients on data."""
        if importance != "curvature":
            raise UserError(f"posterior: importance {brief(importance)} takes no data: only 'curvature' does")
        if not isinstance(rounds, int | np.integer) or isinstance(rounds, bool) or rounds < 1:
            raise UserError(f"posterior: rounds must be a whole number of at least 1. Received: {rounds!r}")
        if not self.compiled:
            raise UserError(
                "posterior: importance 'curvature' needs a compiled supernet; call supernet.compile(loss=...) first"
            )
        return by_curvature(self, data, bounds, int(rounds))

    def set_architecture(self, architecture: Architecture) -> None:
        """Sets the hard masks of `architecture`, once it is closed. Raises UserError if it is another supernet's."""
        closed = self.graph.closed(architecture)
        self._gated.set_masks(closed, self.graph.flow(closed).explicit)

    def architecture(self) -> Architecture:
        """The architecture of the hard masks in use, closed."""
        return self._gated.architecture()

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` makes the same model."""
        return {
            **super().get_config(),
            "plain": keras.saving.serialize_keras_object(self.graph.model),
            "num_examples": self.num_examples,
            "bounds": self.bounds,
            "steps": self.steps,
            "exclude": self.graph.exclude,
            "streams": self.graph.streams,
            "noise": self.noise,
            "temperature": self.draw.temperature,
            "initial_drop": self.draw.initial_drop,
            "seed": self.draw.seed,
            "latencies": self.latencies and dataclasses.asdict(self.latencies),
            "channel_multiple": self.channel_multiple,
            "importance": None if callable(self.importance) else self.importance,
            "iterative": self.iterative,
            "floor": self.floor,
            "scale_penalty": self.scale_penalty,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> UnitSupernet:
        """Inverse of `get_config`."""
        with deep():
            plain = keras.saving.deserialize_keras_object(config["plain"], custom_objects=custom_objects)
        config = {name: value for name, value in config.items() if name != "plain"}
        return cls(UnitGraph(plain, config.pop("exclude"), config.pop("streams")), **config)


def costs_of(graph: UnitGraph, latencies: Latencies | None) -> ClosedForm:
    """Costs of a graph's networks in closed form, with the latency if it was measured."""
    return graph.form.with_latency(latencies.terms(graph)) if latencies else graph.form


def _free_name(wanted: str, graph: UnitGraph) -> str:
    return wanted if wanted not in graph.index else _free_name(f"{wanted}_", graph)
