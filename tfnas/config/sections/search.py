"""Settings of training the supernet, and the values that follow from its recipe."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfnas.config import fields
from tfnas.config.sections.retrain import Retrain

# By recipe: the drop probability before the first step, and how many channels share one (0: all of a source).
DEFAULT_GATES = {"target": (0.02, 1), "paper": (0.1, 0)}


@dataclasses.dataclass(frozen=True)
class Search:
    """Training the supernet on the ELBO (docs/method.md).

    The recipe determines the objective, and every value that is left out. 'target', for a small budget, adjusts a
    Lagrange multiplier on the expected cost until the network has the requested size; 'paper' is the published method.
    """

    recipe: str = "target"  # or 'paper'
    # 'target': the requested size, as a share of the full network's parameters or of its multiply-adds. Set one of the
    # two; neither: half of the parameters.
    parameters: float = 0.0
    multiply_adds: float = 0.0
    epochs: int = 8  # in total
    warmup_epochs: int = -1  # the first of them, without gates; -1: 'target' a third, 'paper' none
    batch_size: int = 128
    learning_rate: float = 0.1  # of SGD, at the start of the schedule
    # 'one_cosine': to zero over search and retraining; 'cosine': over search; 'cosine_restarts'; 'steps': divided by 10
    # at each of the boundaries. Empty: 'target' one_cosine, 'paper' cosine.
    schedule: str = ""
    cosine_epochs: int = 0  # one_cosine: its length; 0: search's epochs and retrain's
    minimum_learning_rate: float = 0.0  # cosine_restarts: the end of each cosine
    restart_epochs: int = 10  # cosine_restarts: length of the first cosine
    restart_multiplier: float = 2.0  # cosine_restarts: each cosine is this many times as long as the one before
    boundaries: tuple[float, ...] = ()  # steps: epochs after which the rate is divided by 10
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = -1.0  # of search's weights, as retrain's; -1: 'target' retrain's, 'paper' none
    ell2: float = 0.0  # 'paper': squared prior length scale: larger gives a smaller network; 0: 50
    example_multiplier: float = 10.0  # N = this x training images: examples distinct under augmentation
    temperature: float = 0.2  # of the relaxed Bernoulli gates
    initial_drop: float = 0.0  # drop probability before the first step; 0: 'target' 0.02, 'paper' 0.1
    # Number of neighboring channels that share a gate's logit; 0: all of a source. -1: 'target' 1, 'paper' 0.
    group_size: int = -1
    by_source: bool = True  # groups end where a source of a concatenated input ends; False: such an input is one source
    gate_step: float = 0.05  # 'target': Adam's learning rate of the gates' logits
    gate_learning_rate: float = 1.0  # 'paper': as a multiple of the weights'; 3 to 10 helps runs with few epochs
    # 'paper': 'parameters' or 'multiply_adds' penalize each channel by its cost; 'constant' not at all (`tfnas.gate`)
    prior: str = "uniform"
    gate_dense: bool = False  # gate dense layers too, except the classifier
    gate_pooling: bool = False  # gate pooling and Identity layers too, so that such an operation can be dropped
    include: str = ""  # glob patterns of layer names, separated by commas: exactly these are gated; empty: by kind
    exclude: str = ""  # glob patterns of layer names, separated by commas: never gated
    # 'stop': end the search when the posterior drops everything; 'warn': warn once. Both also warn once about a
    # posterior that does not move. 'off': neither (tfnas/training/collapse_guard.py). May be changed during a run.
    guard: str = "stop"

    @property
    def gated_epochs(self) -> int:
        """Epochs after the warm-up."""
        return self.epochs - self.warmup_epochs

    @property
    def target(self) -> dict[str, float]:
        """The requested resource and share, by the names of `tfnas.gate`; empty for 'paper'."""
        return {name: share for name in ("parameters", "multiply_adds") if (share := getattr(self, name))}

    def resolved(self, retrain: Retrain) -> Search:
        """These settings, with the recipe's values for those that are left out."""
        unset = {"schedule": "", "warmup_epochs": -1, "weight_decay": -1.0, "initial_drop": 0.0, "group_size": -1}
        if self.recipe == "target":
            recipe = ("one_cosine", (self.epochs + 1) // 3, retrain.weight_decay, *DEFAULT_GATES["target"])
            further: dict[str, Any] = {} if self.target else {"parameters": 0.5}
        else:
            recipe = ("cosine", 0, 0.0, *DEFAULT_GATES["paper"])
            further = {} if self.ell2 else {"ell2": 50.0}
        chosen: dict[str, Any] = dict(zip(unset, recipe, strict=True))
        chosen = {name: value for name, value in chosen.items() if getattr(self, name) == unset[name]}
        if chosen.get("schedule", self.schedule) == "one_cosine" and not self.cosine_epochs:
            # Set here because the search depends on it: with another number it is another search.
            further["cosine_epochs"] = self.epochs + max(0, retrain.epochs)
        return dataclasses.replace(self, **chosen, **further)

    def shortened(self, epochs: int) -> Search:
        """The same search in another number of epochs: whatever is counted in epochs is scaled.

        Args:
            epochs: at least 2 with a warm-up, so that one is left for the gates.
        """
        scale = epochs / self.epochs
        return dataclasses.replace(
            self,
            epochs=epochs,
            warmup_epochs=min(round(scale * self.warmup_epochs), epochs - 1),
            cosine_epochs=self.cosine_epochs and max(epochs, round(scale * self.cosine_epochs)),
            restart_epochs=max(1, round(scale * self.restart_epochs)),
            boundaries=tuple(scale * epoch for epoch in self.boundaries),
        )

    def check(self) -> None:
        """Raises UserError for a value out of range, in settings that are resolved."""
        fields.at_least("search.epochs", self.epochs, 1)
        fields.at_least("search.batch_size", self.batch_size, 1)
        for field in ("learning_rate", "example_multiplier", "temperature", "gate_learning_rate", "gate_step"):
            fields.positive(f"search.{field}", getattr(self, field))
        fields.one_of("search.prior", self.prior, ("uniform", "parameters", "multiply_adds", "constant"))
        self._check_recipe()
        expected = f"at least 0 and less than search.epochs, {self.epochs}; or -1, as the recipe has it"
        fields.require(0 <= self.warmup_epochs < self.epochs, "search.warmup_epochs", self.warmup_epochs, expected)
        fields.require(
            self.weight_decay >= 0, "search.weight_decay", self.weight_decay, "at least 0, or -1 for the recipe's"
        )
        fields.require(self.group_size >= 0, "search.group_size", self.group_size, "at least 0, or -1 for the recipe's")
        self._check_schedule()
        fields.one_of("search.guard", self.guard, ("stop", "warn", "off"))
        fields.require(0 <= self.momentum < 1, "search.momentum", self.momentum, "a number in [0, 1)")
        fields.require(
            0 < self.initial_drop < 1, "search.initial_drop", self.initial_drop, "a number strictly in (0, 1)"
        )

    def _check_recipe(self) -> None:
        fields.one_of("search.recipe", self.recipe, ("target", "paper"))
        if self.recipe == "paper":
            fields.positive("search.ell2", self.ell2)
            others: tuple[str, ...] = ("parameters", "multiply_adds", "gate_step")
            of = "it belongs to the recipe 'target'"
        else:
            others, of = ("ell2", "gate_learning_rate", "prior"), "it belongs to the recipe 'paper'"
            expected = "a share in (0, 1)"
            for name, share in self.target.items():
                fields.require(0 < share < 1, f"search.{name}", share, expected)
            fields.require(len(self.target) < 2, "search.parameters and multiply_adds", self.target, "one of the two")
        for name in others:
            default = type(self).__dataclass_fields__[name].default
            fields.require(getattr(self, name) == default, f"search.{name}", getattr(self, name), f"left out: {of}")

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
