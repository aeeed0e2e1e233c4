"""Settings of the supernet."""

from __future__ import annotations

import dataclasses

from tfnas.common import user_functions
from tfnas.common.errors import UserError
from tfnas.config import fields

# Arguments of each builder of `tfnas.supernets`, besides those that follow from the data.
BUILDERS = {
    "multi_branch_resnet": ("width", "num_blocks", "stem_width"),
    "enas": ("width", "num_blocks", "drop_path"),
    "resnet50": ("width", "num_blocks"),
    "densenet121": ("width", "num_blocks"),
    "densenet121_3d": ("width", "num_blocks"),
    "resnet_cifar": ("width", "num_blocks"),
    "vgg19": ("width",),
}
_MODEL, _WEIGHTS = ".keras", ".weights.h5"  # how the names of Keras's files end
_WIDTHS = {  # divisors of the width
    "multi_branch_resnet": (2, "an even number: the skip joins two halves"),
    "resnet50": (4, "divisible by 4: four convolutions share the maps"),
    "resnet_cifar": (2, "an even number: skips get as many zeros on either side"),
}


@dataclasses.dataclass(frozen=True)
class Supernet:
    """Which supernet. docs/reproducing.md has the published sizes, `tfnas.supernets` the builders.

    A number left at 0 is the builder's own default, that of the published network.
    """

    name: str = "multi_branch_resnet"  # or another builder of tfnas.supernets
    width: int = 0  # channels of the first stage; of the DenseNets, the growth rate
    num_blocks: int = 0  # blocks, layers or cells in each stage
    stem_width: int = 0  # channels of the first convolution; of multi_branch_resnet only
    drop_path: float = 0.0  # share of the examples for which training drops a path of the last cell; of enas only
    # 'package.module:function', called with (input_shape, num_classes), returns a keras.Model that gives logits; or a
    # `.keras` file with such a model, which is then trained. It replaces `name`, and takes none of the numbers above.
    source: str = ""
    weights: str = ""  # `.weights.h5` or `.keras` file with trained weights of the supernet that is built

    def arguments(self) -> dict[str, float]:
        """Arguments for the builder: those that are not left at 0."""
        taken = () if self.source else BUILDERS[self.name]
        return {name: getattr(self, name) for name in taken if getattr(self, name)}

    @property
    def trained(self) -> bool:
        """Whether the supernet starts from trained weights: defaults of search and retrain follow from it."""
        return bool(self.files)

    @property
    def files(self) -> dict[str, str]:
        """The files that the supernet or its weights are in, by setting."""
        found = {"source": self.source if self.source.endswith(_MODEL) else "", "weights": self.weights}
        return {f"supernet.{name}": file for name, file in found.items() if file}

    def check(self) -> None:
        """Raises UserError for a value out of range, or one that this builder does not take."""
        fields.one_of("supernet.name", self.name, tuple(BUILDERS))
        fields.require(0 <= self.drop_path < 1, "supernet.drop_path", self.drop_path, "a share in [0, 1)")
        numbers = ("width", "num_blocks", "stem_width", "drop_path")
        if self.source.endswith(_MODEL):
            fields.require(not self.weights, "supernet.weights", self.weights, f"left out: {self.source} has its own")
        elif self.source:
            user_functions.check_name("supernet.source", self.source, f", or a {_MODEL} file")
        fits = not self.weights or self.weights.endswith((_MODEL, _WEIGHTS))
        fields.require(fits, "supernet.weights", self.weights, f"a {_WEIGHTS} or {_MODEL} file")
        if self.source:
            given = [f"--config.supernet.{field}=0" for field in numbers if getattr(self, field)]
            if given:
                if not self.source.endswith(_MODEL):
                    user_functions.resolve("supernet.source", self.source)  # a wrong name is the first mistake
                raise UserError(
                    f"config: supernet.source takes none of the built-in supernets' numbers: add {' '.join(given)}. "
                    f"Received: {self.source!r}"
                )
        for field in numbers:
            value = getattr(self, field)
            fields.at_least(f"supernet.{field}", value, 0)
            taken = field in BUILDERS[self.name]
            fields.require(taken or not value, f"supernet.{field}", value, f"left at 0: '{self.name}' does not take it")
        divisor, expected = _WIDTHS.get(self.name, (1, ""))
        fields.require(self.width % divisor == 0, "supernet.width", self.width, expected)
