"""Settings of training the network that was found further."""

from __future__ import annotations

import dataclasses

from tfnas.config import fields

# What else may be trained to compare with: after a search with bounds, and with ell2.
OF_BOUNDS = ("even", "norm", "scale", "curvature", "gates")
OF_ELL2 = ("fixed_drop", "single_path", "magnitude_pruning")


@dataclasses.dataclass(frozen=True)
class Retrain:
    """Further training of the network that was found; 0 epochs keeps the inherited weights."""

    epochs: int = -1  # -1: 24, or 8 from a trained supernet
    # At the start of a cosine to zero, of SGD with search's momentum; 0: search's. Not used with 'one_cosine'.
    learning_rate: float = 0.0
    batch_size: int = 128
    # Decoupled, and of kernels only: kernel -= learning rate x weight_decay x kernel. The usual penalty of 5e-4 in the
    # loss shrinks kernels ten times as fast under a momentum of 0.9, by 5e-4 / (1 - 0.9): the 5e-3 here.
    weight_decay: float = 5e-3
    # Distillation: weight in [0, 1] of the loss with regard to a teacher's outputs, beside that with regard to the
    # labels; 0: off. The teacher is the trained supernet, or else the full network of `baseline`.
    distill: float = 0.0
    distill_temperature: float = 4.0  # that both networks' logits are divided by
    # Also train the full network without gates, in the same epochs, batches and learning rates as search and retraining
    # together.
    baseline: bool = True
    # Also search with these importances, within the same bounds, and train as long: 'even', 'norm', 'scale',
    # 'curvature', 'gates'. With ell2, ways that need no posterior: 'fixed_drop', 'single_path', 'magnitude_pruning'.
    # Each costs about one more search and one more retraining.
    baselines: tuple[str, ...] = ()

    def resolved(self, trained: bool) -> Retrain:
        """These settings, with the values for those that are left out; `trained`: whether the supernet is."""
        epochs = (8 if trained else 24) if self.epochs == -1 else self.epochs
        return dataclasses.replace(self, epochs=epochs)

    def check(self) -> None:
        """Raises UserError for a value out of range, in settings that are resolved."""
        fields.at_least("retrain.epochs", self.epochs, 0)
        fields.at_least("retrain.batch_size", self.batch_size, 1)
        fields.positive("retrain.learning_rate", self.learning_rate)
        fields.at_least("retrain.weight_decay", self.weight_decay, 0)
        for name in self.baselines:
            fields.one_of("retrain.baselines", name, OF_BOUNDS + OF_ELL2)
        different = len(set(self.baselines)) == len(self.baselines)
        fields.require(different, "retrain.baselines", self.baselines, "different ones")
        fields.require(0 <= self.distill <= 1, "retrain.distill", self.distill, "a weight in [0, 1]")
        fields.positive("retrain.distill_temperature", self.distill_temperature)
