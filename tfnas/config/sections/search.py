"""Settings of training the supernet, and the values that follow from its mode."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.common.resources import Resource
from tfnas.config import fields
from tfnas.config.sections.retrain import Retrain

INITIAL_DROP, PUBLISHED_INITIAL_DROP = 0.02, 0.1  # drop probability before the first step, with bounds and with ell2

IMPORTANCES = ("gates", "curvature", "norm", "scale", "even")
FLOOR = 0.1  # share of a group's units that importance 'scale' keeps first

# Settings of one importance only.
_OF_IMPORTANCES = {
    "gates": ("gate_step", "noise", "temperature", "example_multiplier"),
    "curvature": ("iterative",),
    "scale": ("floor", "scale_penalty"),
}
# Settings of one mode only.
_OF_BOUNDS = ("gate_step", "noise", "streams", "iterative", "curvature_images", "floor", "scale_penalty")
_OF_ELL2 = ("gate_learning_rate", "prior", "group_size", "by_source", "gate_dense", "gate_pooling", "include")

_DEVICES = {"tensorflow": "TensorFlow, one example", "litert": "LiteRT, one thread, one example"}


@dataclasses.dataclass(frozen=True)
class Search:
    """Training the supernet on the ELBO (docs/method.md), in one of two modes.

    With bounds, gates stand on channel units, and Lagrange multipliers bring the expected costs of the network down to
    the bounds. With `ell2`, the search is the published one: gates stand on the input channels of every layer, and the
    length scale of the prior decides how much goes. Values that are left out follow from the mode, and from whether the
    supernet is trained.
    """

    # Bounds on the network found: shares of the full network in (0, 1), or numbers above 1 of parameters and of
    # multiply-adds; any of them together. With none and no ell2: half of the parameters and half of the multiply-adds.
    parameters: float = 0.0
    multiply_adds: float = 0.0
    latency: float = 0.0  # a share only, as measured
    # What latencies are measured with, on this machine, in search, sample and retrain: 'tensorflow' or 'litert'.
    latency_device: str = "tensorflow"
    ell2: float = 0.0  # instead of bounds: squared prior length scale; larger gives a smaller network
    # In total; -1: 8, or from a trained supernet 3, or 0 where nothing is learned but the weights. 0, with importances
    # that are computed at once: units are chosen by the weights as they are.
    epochs: int = -1
    # The first of them, without gates; -1: with bounds a third, with ell2 or from a trained supernet none.
    warmup_epochs: int = -1
    batch_size: int = 128
    learning_rate: float = 0.0  # of SGD, at the start of the schedule; 0: 0.1, or 0.03 from a trained supernet
    # 'one_cosine': to zero over search and retraining; 'cosine': over search; 'cosine_restarts'; 'steps': divided by 10
    # at each of the boundaries. Empty: with bounds one_cosine, with ell2 cosine.
    schedule: str = ""
    cosine_epochs: int = 0  # one_cosine: its length; 0: search's epochs and retrain's
    minimum_learning_rate: float = 0.0  # cosine_restarts: the end of each cosine
    restart_epochs: int = 10  # cosine_restarts: length of the first cosine
    restart_multiplier: float = 2.0  # cosine_restarts: each cosine is this many times as long as the one before
    boundaries: tuple[float, ...] = ()  # steps: epochs after which the rate is divided by 10
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = -1.0  # of search's weights, as retrain's; -1: with bounds retrain's, with ell2 none
    example_multiplier: float = 10.0  # N = this x training images: examples distinct under augmentation
    temperature: float = 0.2  # of the relaxed Bernoulli gates
    initial_drop: float = 0.0  # drop probability before the first step; 0: with bounds 0.02, with ell2 0.1
    exclude: str = ""  # glob patterns of layer names, separated by commas: never gated, or never narrowed
    # What decides between channels (docs/method.md, "Importances"). Empty: with bounds 'curvature', at once from a
    # trained supernet (docs/choosing.md); with ell2 'gates', the only one. 'gates', trained with the weights;
    # 'curvature', squared gradients; 'norm', the weights' norms; 'scale', scales of normalizations; 'even': all layers
    # are narrowed by the same share; or 'package.module:function', from a tfnas.graph.units.UnitGraph to a score for
    # each channel unit.
    importance: str = ""
    # curvature: whether channels are dropped while the search trains. False: the network is trained as it is, and the
    # gradients are taken at its end.
    iterative: bool = True
    curvature_images: int = 2000  # curvature that is not iterative: training images whose gradients are taken
    floor: float = FLOOR  # scale: share of each layer's channels that are kept first, in [0, 1]; 0: none
    scale_penalty: float = -1.0  # scale: weight in the loss of the sum of absolute scales; -1: 2 / steps, at least 1e-4
    gate_step: float = 0.05  # with bounds: Adam's learning rate of the gates' logits
    # With bounds: 'batch' draws the gates' noise once for all images of a batch, which costs next to no time;
    # 'example' for each image, as with ell2.
    noise: str = "batch"
    # With bounds: whether residual streams are narrowed too. 'auto': only if the bounds cannot be reached otherwise.
    streams: str = "auto"
    gate_learning_rate: float = 1.0  # with ell2: as a multiple of the weights'; 3 to 10 helps runs with few epochs
    prior: str = "uniform"  # with ell2; 'constant': no channel is penalized, the paper's ablation (`tfnas.gate`)
    group_size: int = 0  # with ell2: number of neighboring channels that share a gate's logit; 0: all of a source
    # With ell2: groups end where a source of a concatenated input ends; False: such an input is one source.
    by_source: bool = True
    gate_dense: bool = False  # with ell2: gate dense layers too, except the classifier
    gate_pooling: bool = False  # with ell2: gate pooling and Identity layers too, so that they can be dropped
    include: str = ""  # with ell2: glob patterns of layer names: exactly these are gated; empty: by kind
    # 'stop': end the search when the posterior drops everything; 'warn': warn once. Both also warn once about a
    # posterior that does not move. 'off': neither (tfnas/training/collapse_guard.py). May be changed during a run.
    guard: str = "stop"

    @property
    def latency_measured(self) -> str:
        """The way latencies are measured, in words."""
        return _DEVICES[self.latency_device]

    @property
    def gated_epochs(self) -> int:
        """Epochs after the warm-up."""
        return self.epochs - self.warmup_epochs

    @property
    def published(self) -> bool:
        """Whether this is the published search, with `ell2`."""
        return self.ell2 != 0

    @property
    def plain(self) -> bool:
        """Whether the network is trained without gates, penalty, or dropping channels."""
        learned = self.importance in ("gates", "scale") or (self.importance == "curvature" and self.iterative)
        return not (self.published or learned)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds by resource, as they are set; empty with `ell2`."""
        return {resource.value: bound for resource in Resource if (bound := getattr(self, resource))}

    def by(self, importance: str) -> Search:
        """The same search by another importance; what belongs to single other ones is at its default."""
        others = [name for other, names in _OF_IMPORTANCES.items() if other != importance for name in names]
        defaults: dict[str, Any] = {name: type(self).__dataclass_fields__[name].default for name in others}
        return dataclasses.replace(self, importance=importance, **defaults)

    def resolved(self, retrain: Retrain, trained: bool) -> Search:
        """These settings, with the values for those that are left out.

        Args:
            retrain: resolved settings of retraining.
            trained: whether the supernet is.
        """
        if not self.importance:
            # What was best where it was measured: docs/choosing.md.
            importance: dict[str, Any] = {"importance": "gates" if self.published else "curvature"}
            if trained and not self.published:
                importance["iterative"] = False
            return dataclasses.replace(self, **importance).resolved(retrain, trained)
        epochs = (8 if not trained else 0 if self.plain else 3) if self.epochs == -1 else self.epochs
        defaults: dict[str, Any] = {"epochs": epochs, "learning_rate": 0.03 if trained else 0.1}
        if self.published:
            defaults |= {"schedule": "cosine", "weight_decay": 0.0, "initial_drop": PUBLISHED_INITIAL_DROP}
        else:
            defaults |= {
                "schedule": "one_cosine",
                "weight_decay": retrain.weight_decay,
                "initial_drop": INITIAL_DROP,
            }
        defaults["warmup_epochs"] = 0 if self.published or trained or self.plain else (epochs + 1) // 3
        unset = type(self)()
        chosen = {name: value for name, value in defaults.items() if getattr(self, name) == getattr(unset, name)}
        if not (self.published or self.bounds):
            chosen |= {"parameters": 0.5, "multiply_adds": 0.5}
        if chosen.get("schedule", self.schedule) == "one_cosine" and not self.cosine_epochs:
            # Set here because the search depends on it: with another number it is another search.
            chosen["cosine_epochs"] = epochs + max(0, retrain.epochs)
        return dataclasses.replace(self, **chosen)

    def shortened(self, epochs: int) -> Search:
        """The same search in another number of epochs: whatever is counted in epochs is scaled.

        Args:
            epochs: at least 2 with a warm-up, so that one is left for the gates.
        """
        scale = epochs / self.epochs if self.epochs else 1.0
        return dataclasses.replace(
            self,
            epochs=epochs,
            warmup_epochs=max(0, min(round(scale * self.warmup_epochs), epochs - 1)),
            cosine_epochs=self.cosine_epochs and max(epochs, round(scale * self.cosine_epochs)),
            restart_epochs=max(1, round(scale * self.restart_epochs)),
            boundaries=tuple(scale * epoch for epoch in self.boundaries),
        )

    def check(self) -> None:
        """Raises UserError for a value out of range, in settings that are resolved."""
        least, when = (0, "") if self.plain else (1, "; 0 only where importances are computed at once")
        fields.require(self.epochs >= least, "search.epochs", self.epochs, f"at least {least}{when}")
        fields.at_least("search.batch_size", self.batch_size, 1)
        for field in ("learning_rate", "example_multiplier", "temperature", "gate_learning_rate", "gate_step"):
            fields.positive(f"search.{field}", getattr(self, field))
        fields.one_of("search.prior", self.prior, ("uniform", "constant"))
        fields.one_of("search.latency_device", self.latency_device, tuple(_DEVICES))
        fields.one_of("search.noise", self.noise, ("batch", "example"))
        fields.one_of("search.streams", self.streams, ("auto", "yes", "no"))
        self._check_mode()
        expected = f"at least 0 and less than search.epochs, {self.epochs}; or -1 for the mode's"
        warmup, most = self.warmup_epochs, max(0, self.epochs - 1)
        fields.require(0 <= warmup <= most, "search.warmup_epochs", warmup, expected)
        fields.require(
            self.weight_decay >= 0, "search.weight_decay", self.weight_decay, "at least 0, or -1 for the mode's"
        )
        fields.at_least("search.group_size", self.group_size, 0)
        self._check_schedule()
        fields.one_of("search.guard", self.guard, ("stop", "warn", "off"))
        fields.require(0 <= self.momentum < 1, "search.momentum", self.momentum, "a number in [0, 1)")
        fields.require(
            0 < self.initial_drop < 1, "search.initial_drop", self.initial_drop, "a number strictly in (0, 1)"
        )

    def _check_mode(self) -> None:
        if self.published:
            fields.positive("search.ell2", self.ell2)
            if self.bounds:
                none = " ".join(f"--config.search.{name}=0" for name in self.bounds)
                raise UserError(
                    f"config: search.ell2={self.ell2:g} and search.{next(iter(self.bounds))} exclude each other: add "
                    f"{none} for the published search, or --config.search.ell2=0 for one with bounds"
                )
            expected = "'gates' or left out: search.ell2 selects the published search"
            fields.require(self.importance == "gates", "search.importance", self.importance, expected)
            of = "it belongs to a search with bounds, and search.ell2 is set"
        else:
            fields.check_bounds("search", self.bounds)
            self._check_importance()
            of = "it belongs to the published search, which search.ell2 selects"
        for name in _OF_BOUNDS if self.published else _OF_ELL2:
            default = type(self).__dataclass_fields__[name].default
            fields.require(getattr(self, name) == default, f"search.{name}", getattr(self, name), f"left out: {of}")

    def _check_importance(self) -> None:
        if ":" in self.importance:
            user_functions.check_name("search.importance", self.importance)
        else:
            expected = f"one of {', '.join(map(repr, IMPORTANCES))}, or 'package.module:function'"
            fields.require(self.importance in IMPORTANCES, "search.importance", self.importance, expected)
        for importance, names in _OF_IMPORTANCES.items():
            for name in names if importance != self.importance else ():
                default = type(self).__dataclass_fields__[name].default
                left_out = f"left out: it belongs to search.importance={importance!r}"
                fields.require(getattr(self, name) == default, f"search.{name}", getattr(self, name), left_out)
        relaxed = self.importance == "gates" or self.initial_drop == INITIAL_DROP
        expected = "left out: it belongs to search.importance='gates'"
        fields.require(relaxed, "search.initial_drop", self.initial_drop, expected)
        once = self.importance == "curvature" and not self.iterative
        default = type(self).__dataclass_fields__["curvature_images"].default
        expected = "left out: it belongs to search.importance='curvature' with search.iterative=False"
        fields.require(
            once or self.curvature_images == default, "search.curvature_images", self.curvature_images, expected
        )
        fields.at_least("search.curvature_images", self.curvature_images, 1)
        fields.require(0 <= self.floor <= 1, "search.floor", self.floor, "a share in [0, 1]")
        penalty, expected = self.scale_penalty, "at least 0, or -1 for the default"
        fields.require(penalty >= 0 or penalty == -1, "search.scale_penalty", penalty, expected)

    def _check_schedule(self) -> None:
        fields.one_of("search.schedule", self.schedule, ("one_cosine", "cosine", "cosine_restarts", "steps"))
        if self.schedule == "one_cosine":
            expected = f"at least search.epochs, {self.epochs}; or 0 for those and retrain's"
            fields.require(self.cosine_epochs >= self.epochs, "search.cosine_epochs", self.cosine_epochs, expected)
        else:
            expected = "left at 0: only 'one_cosine' has them"
            fields.require(self.cosine_epochs == 0, "search.cosine_epochs", self.cosine_epochs, expected)
        least = self.minimum_learning_rate
        if self.schedule == "cosine_restarts":
            expected = f"at least 0 and less than search.learning_rate, {self.learning_rate}"
            fields.require(0 <= least < self.learning_rate, "search.minimum_learning_rate", least, expected)
        else:
            fields.require(
                least == 0, "search.minimum_learning_rate", least, "left at 0: only 'cosine_restarts' has one"
            )
        fields.at_least("search.restart_epochs", self.restart_epochs, 1)
        multiplier = self.restart_multiplier
        fields.require(1 <= multiplier < math.inf, "search.restart_multiplier", multiplier, "a number of at least 1")
        epochs = self.boundaries
        if self.schedule == "steps":
            ascending = all(a < b < math.inf for a, b in zip((0.0, *epochs), epochs, strict=False))
            fields.require(
                bool(epochs) and ascending, "search.boundaries", epochs, "one or more epochs, ascending, above 0"
            )
        else:
            fields.require(not epochs, "search.boundaries", epochs, "left empty: only the schedule 'steps' has them")
