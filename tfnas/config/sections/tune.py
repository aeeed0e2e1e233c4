"""Settings of many searches."""

from __future__ import annotations

import dataclasses

from tfnas.config import fields

# Settings of search that can be tuned.
TUNED = ("ell2", "learning_rate", "gate_learning_rate", "gate_step", "temperature", "initial_drop")


@dataclasses.dataclass(frozen=True)
class Tune:
    """Values of search's settings that `tfnas tune` tries, each with a search and a sample of its own.

    The methods 'grid' and 'random' use these values, 'bayesian' and 'hyperband' the range from the smallest to the
    largest, on a logarithmic scale. A setting without values is not tuned.
    """

    method: str = "grid"  # or 'random', 'bayesian' or 'hyperband', all of KerasTuner
    trials: int = 0  # at most; 0: all of 'grid', or of 'hyperband', whose number follows from search.epochs
    # Or the task's metric of an example, such as 'accuracy'; of the best candidate, on validation images that the race
    # did not use.
    objective: str = "loss"
    budget: float = 1.0  # the best candidate's parameters, at most, as a share of the full network's; 1: any size
    ell2: tuple[float, ...] = ()  # of a search with ell2
    learning_rate: tuple[float, ...] = ()
    gate_learning_rate: tuple[float, ...] = ()  # of a search with ell2
    gate_step: tuple[float, ...] = ()  # of a search with bounds
    temperature: tuple[float, ...] = ()
    initial_drop: tuple[float, ...] = ()

    def values(self) -> dict[str, tuple[float, ...]]:
        """Values by the setting of search that they tune."""
        return {name: given for name in TUNED if (given := getattr(self, name))}

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.one_of("tune.method", self.method, ("grid", "random", "bayesian", "hyperband"))
        fields.at_least("tune.trials", self.trials, 0)
        if self.method in ("random", "bayesian"):
            fields.require(self.trials > 0, "tune.trials", self.trials, f"at least 1 with the method '{self.method}'")
        fields.require(
            0 < self.budget <= 1, "tune.budget", self.budget, "a share in (0, 1]; 1 for networks of any size"
        )
        ranges = self.method in ("bayesian", "hyperband")
        for name, given in self.values().items():
            key = f"tune.{name}"
            fields.require(len(set(given)) == len(given), key, given, "values each given once")
            fields.require(
                len(given) > 1 or not ranges, key, given, f"two ends of a range with the method '{self.method}'"
            )
            for value in given:
                fields.positive(key, value)
                fields.require(value < 1 or name != "initial_drop", key, value, "numbers strictly in (0, 1)")
