"""Settings of acceptance: what a network must reach to be exported."""

from __future__ import annotations

import dataclasses

from tfnas.config import fields


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Thresholds on the test split that a network must meet to be exported; none by default."""

    # Limit of the task's first metric on test (docs/your_model.md), such as the accuracy: at least this, or at most, if
    # lower is better; 0 asks for nothing.
    threshold: float = 0.0
    # How much worse than the full network's: a difference of shares such as accuracies, or the relative one of other
    # numbers; needs retrain.baseline.
    max_drop: float = 1.0
    max_parameters: float = 1.0  # share of the full network's
    max_multiply_adds: float = 1.0  # share of the full network's

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.at_least("evaluate.threshold", self.threshold, 0)
        for field in ("max_drop", "max_parameters", "max_multiply_adds"):
            share = getattr(self, field)
            # The network that was found may be better than the full one: a negative loss may be required.
            least = -1 if field == "max_drop" else 0
            fields.require(
                least <= share <= 1, f"evaluate.{field}", share, f"a share in [{least}, 1]; 1 asks for nothing"
            )
