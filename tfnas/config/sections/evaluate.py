"""Settings of acceptance: what a network must reach to be exported."""

from __future__ import annotations

import dataclasses

from tfnas.config import fields


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Thresholds on the test split that a network must meet to be exported; none by default."""

    min_accuracy: float = 0.0  # on test
    max_accuracy_loss: float = 1.0  # below the full network's test accuracy; needs retrain.baseline
    max_parameters: float = 1.0  # share of the full network's
    max_multiply_adds: float = 1.0  # share of the full network's

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.require(0 <= self.min_accuracy <= 1, "evaluate.min_accuracy", self.min_accuracy, "a share in [0, 1]")
        for field in ("max_accuracy_loss", "max_parameters", "max_multiply_adds"):
            share = getattr(self, field)
            # The network that was found may be better than the full one: a negative loss may be required.
            least = -1 if field == "max_accuracy_loss" else 0
            fields.require(
                least <= share <= 1, f"evaluate.{field}", share, f"a share in [{least}, 1]; 1 asks for nothing"
            )
