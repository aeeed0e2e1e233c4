"""The use of a shrinking's epochs, and the importance by which channel units are chosen (docs/choosing.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfnas.config import Retrain, Search

_LONG = 8  # epochs from which a trained model's units are dropped in steps, rather than at once
_TRAINED_SHARE, _SHARE = 0.3, 0.25  # of the epochs, for the search


@dataclasses.dataclass(frozen=True)
class Plan:
    """Epochs and settings.

    Attributes:
        search: settings of the search, as the command line resolves them.
        warmup, gated, retrain: epochs of each training.
    """

    search: Search
    warmup: int
    gated: int
    retrain: int

    @property
    def at_once(self) -> bool:
        """Whether nothing is learned about units in training."""
        return self.search.plain

    @property
    def epochs(self) -> int:
        """All of them."""
        return self.warmup + self.gated + self.retrain

    def words(self) -> str:
        """Describes the plan."""
        parts = [(self.warmup, "without gates"), (self.gated, "of search"), (self.retrain, "of retraining")]
        how = "at once" if self.at_once else "dropped in steps" if self.search.importance == "curvature" else "learned"
        epochs = ", ".join(f"{number} {words}" for number, words in parts if number) or "none"
        return f"importance '{self.search.importance}', {how}; epochs: {epochs}"


def plan(epochs: int, trained: bool, bounds: Mapping[str, float], importance: str = "curvature") -> Plan:
    """Divides the epochs among search and retraining.

    Units are chosen by curvature: without epochs, or with fewer than eight of a trained model, from the weights as they
    are, so that all epochs follow the cut; else in steps, over 30 % of the epochs of a trained model, and a quarter of
    those of another.

    Args:
        epochs: in total.
        trained: whether the model's weights are.
        bounds: of the search, by resource.
        importance: 'curvature', or 'gates', which are always learned.
    """
    search = max(2, round(_TRAINED_SHARE * epochs)) if trained else max(1, round(_SHARE * epochs))
    if importance == "gates":
        return _plan(bounds, epochs, min(search, epochs), trained, importance="gates")
    if trained and epochs < _LONG or not epochs:
        return _plan(bounds, epochs, 0, trained, importance="curvature", iterative=False)
    return _plan(bounds, epochs, search, trained, importance="curvature")


def plan_at_once(epochs: int, bounds: Mapping[str, float]) -> Plan:
    """Leaves all epochs for the retraining of a trained model, whose units are chosen by curvature before.

    Args:
        epochs: in total.
        bounds: of the search, by resource.
    """
    return _plan(bounds, epochs, 0, True, importance="curvature", iterative=False)


def _plan(bounds: Mapping[str, float], epochs: int, search: int, trained: bool, **importance: object) -> Plan:
    retrain = Retrain(epochs=epochs - search)
    given = Search(**bounds, epochs=max(1, search), **importance)  # type: ignore[arg-type]
    settings = given.resolved(retrain, trained)
    warmup = min(settings.warmup_epochs, max(0, search - 1))
    return Plan(settings, warmup, search - warmup, epochs - search)
