"""Settings of the computation of search and retraining."""

from __future__ import annotations

import dataclasses

from tfnas.config import fields


@dataclasses.dataclass(frozen=True)
class Training:
    """Computation of search and retraining; `Config.distribution` sets the devices (docs/devices.md)."""

    # 'mixed_bfloat16' (TPUs, newer GPUs) or 'mixed_float16' (older GPUs; the loss is scaled): layers compute in 16
    # bits; weights, gates and regularizers stay in 32. Applies to every layer of policy 'float32', even one that your
    # own model sets explicitly; a layer of another policy keeps it.
    precision: str = "float32"
    accumulate: int = 1  # compute each replica's batch in this many parts, if it does not fit into memory
    jit_compile: bool = (
        False  # compile the step with XLA: slower on CPUs, always on for TPUs; `tfnas check` measures it
    )
    checkpoint_minutes: float = 10.0  # interval within an epoch; each epoch ends with a checkpoint anyway
    checkpoints_kept: int = 3  # the most recent ones

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.one_of("training.precision", self.precision, ("float32", "mixed_bfloat16", "mixed_float16"))
        fields.at_least("training.accumulate", self.accumulate, 1)
        fields.positive("training.checkpoint_minutes", self.checkpoint_minutes)
        fields.at_least("training.checkpoints_kept", self.checkpoints_kept, 1)
