"""Every setting, its default and its check. No TensorFlow: the command line must answer before that is loaded.

A config file under ``configs/`` is plain Python::

    from tfnas.config import Config, Search, to_config_dict

    def get_config():
        return to_config_dict(Config(search=Search(epochs=30, ell2=50.0)))

The command line overrides single keys (``--config.search.ell2=80``), then `from_config_dict` checks everything.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from tfnas.common import schema, user_functions
from tfnas.common.errors import UserError
from tfnas.config import fields

_MOST = 2**31  # what a whole number stays below: a seed of NumPy's and TensorFlow's, and a number of anything
_LONGEST_NAME = 200  # bytes: a file system allows 255, and some are added for files being written


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, split how, prepared how.

    Where they come from is said by one of `name`, `folder` and `source`. Two of them are refused, but for the name
    'digits': it is the default, and gives way.
    """

    name: str = "digits"  # a TFDS name, or 'digits': the images bundled with scikit-learn
    data_dir: str = ""  # TFDS folder, for `name`; empty: $TFDS_DATA_DIR, else TFDS's own default
    folder: str = ""  # DIR of DIR/CLASS/*.jpg (all of it the split 'train') or DIR/SPLIT/CLASS/*.jpg; .jpeg, .png too
    source: str = ""  # 'package.module:function' that returns the three splits; train, validation, test are not used
    train: str = "train[:1000]"  # TFDS split expressions; they must not overlap
    validation: str = "train[1000:]"  # ranks the candidates
    test: str = "test"  # read at the very end: by retrain's last evaluation, and by export's check of the SavedModel
    channels: int = (
        0  # of `folder`: 1 (grey) or 3 (colour); 0: colour, unless all images of train and validation are grey
    )
    image_size: int = 0  # resize to a square of this many pixels; 0 keeps the data set's size
    mean: tuple[float, ...] = (0.5,)  # per channel (or one for all), of pixels scaled to [0, 1]
    std: tuple[float, ...] = (0.25,)
    pad_crop: int = 0  # pad by this many pixels, then crop at random
    flip: bool = False  # mirror left-right at random
    cutout: int = 0  # side of the square blanked out at a random place, pixels
    # Train on random parts, 8 to 100 % of the area, aspect 3/4 to 4/3, brought to image_size. Elsewhere the shorter
    # side is then brought to image_size / 0.875 and the centre cut out, instead of the whole squeezed into a square.
    random_resized_crop: bool = False

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return self.source or self.folder or self.name

    @property
    def short_name(self) -> str:
        """The title as a name for files, which is the folder's own name, the function's module, or the TFDS name."""
        if self.source:
            return self.source.partition(":")[0].rpartition(".")[2]
        if self.folder:
            return os.path.basename(os.path.abspath(os.path.expanduser(self.folder))) or "images"
        return self.name.replace("/", "_").replace(":", "_")

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        self._check_origin()
        expected = "1, 3, or 0 to have it found" if self.folder else "left at 0: only data.folder has images of either"
        fields.require(self.channels in ((0, 1, 3) if self.folder else (0,)), "data.channels", self.channels, expected)
        fields.at_least("data.image_size", self.image_size, 0)
        fields.require(
            self.image_size > 0 or not self.random_resized_crop,
            "data.image_size",
            self.image_size,
            "set with data.random_resized_crop, the size that crops are brought to",
        )
        fields.at_least("data.pad_crop", self.pad_crop, 0)
        fields.at_least("data.cutout", self.cutout, 0)
        for field in ("train", "validation", "test"):
            fields.require(
                bool(getattr(self, field)), f"data.{field}", "", "a TFDS split expression such as 'train[:90%]'"
            )
        fields.require(
            len(self.mean) == len(self.std), "data.mean and data.std", (self.mean, self.std), "equal lengths"
        )
        fields.require(all(s > 0 for s in self.std), "data.std", self.std, "positive numbers")

    def _check_origin(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        origins = [k for k in ("folder", "source", "name") if getattr(self, k) not in ("", defaults[k])]
        if len(origins) > 1:
            one, other = (f"data.{key} '{getattr(self, key)}'" for key in origins[:2])
            raise UserError(f"config: {one} and {other} exclude each other: set one of them to nothing")
        fields.require(bool(self.title), "data.name", self.name, "set, or else data.folder or data.source")
        if self.source:
            user_functions.check_name("data.source", self.source)
        unused = ["data_dir"] * bool(self.folder or self.source)
        unused += ["train", "validation", "test"] * bool(self.source)
        for key in unused:
            if getattr(self, key) != defaults[key]:
                raise UserError(
                    f"config: 'data.{key}' says nothing about data.{'source' if self.source else 'folder'} "
                    f"'{self.title}': leave it out. Received: {getattr(self, key)!r}"
                )


# What each builder of `tfnas.supernets` takes, besides what the data says.
# Of a recipe: the drop probability before the first step, and the channels that share one (0: all of a source's).
FIRST_GATES = {"target": (0.02, 1), "paper": (0.1, 0)}
BUILDERS = {
    "multi_branch_resnet": ("width", "num_blocks", "stem_width"),
    "enas": ("width", "num_blocks", "drop_path"),
    "resnet50": ("width", "num_blocks"),
    "densenet121": ("width", "num_blocks"),
    "densenet121_3d": ("width", "num_blocks"),
}
_WIDTHS = {  # what the width must be divisible by
    "multi_branch_resnet": (2, "an even number: the skip joins two halves"),
    "resnet50": (4, "divisible by 4: four convolutions share the maps"),
}


@dataclasses.dataclass(frozen=True)
class Supernet:
    """Which super-network; method.md's table of super-networks gives the published sizes, `tfnas.supernets` the rest.

    Where a number is 0, the builder's own default holds, which is the published network.
    """

    name: str = "multi_branch_resnet"  # or another builder of tfnas.supernets
    width: int = 0  # channels of the first stage; of the DenseNets, the growth rate
    num_blocks: int = 0  # blocks, layers or cells in each stage
    stem_width: int = 0  # channels of the first convolution; of multi_branch_resnet only
    drop_path: float = 0.0  # share of the examples for which training drops a path of the last cell; of enas only
    # 'package.module:function', called with (input_shape, num_classes), returns a keras.Model that gives logits; used
    # instead of `name`, with none of the numbers above.
    source: str = ""

    def arguments(self) -> dict[str, float]:
        """What is given, so not 0, by the builder's names."""
        taken = () if self.source else BUILDERS[self.name]
        return {name: getattr(self, name) for name in taken if getattr(self, name)}

    def check(self) -> None:
        """Raises UserError for the first value out of range, or one that this builder does not take."""
        fields.one_of("supernet.name", self.name, tuple(BUILDERS))
        fields.require(0 <= self.drop_path < 1, "supernet.drop_path", self.drop_path, "a share in [0, 1)")
        for field in ("width", "num_blocks", "stem_width", "drop_path"):
            value = getattr(self, field)
            fields.at_least(f"supernet.{field}", value, 0)
            taken = field in BUILDERS[self.name] and not self.source
            name = self.source or self.name
            fields.require(taken or not value, f"supernet.{field}", value, f"left at 0: '{name}' does not take it")
        divisor, expected = _WIDTHS.get(self.name, (1, ""))
        fields.require(self.width % divisor == 0, "supernet.width", self.width, expected)
        if self.source:
            user_functions.check_name("supernet.source", self.source)


@dataclasses.dataclass(frozen=True)
class Search:
    """Training the super-network on the ELBO (docs/method.md).

    Of the recipe follow the objective, and the values that are left out. 'target', for a small budget, prices what a
    channel costs until the network has the size asked for; 'paper' is the published method to the letter.
    """

    recipe: str = "target"  # or 'paper'
    # 'target': the share of the full network's parameters, or of its multiply-adds, that the network found may have.
    # One of the two; neither: half of the parameters.
    parameters: float = 0.0
    multiply_adds: float = 0.0
    epochs: int = 8  # in all
    warmup_epochs: int = -1  # of them the first, without gates; -1: 'target' a third, 'paper' none
    batch_size: int = 128
    learning_rate: float = 0.1  # of SGD, where the schedule starts
    # 'one_cosine' to zero over search and retraining; 'cosine' over search; 'cosine_restarts'; 'steps': / 10 at each of
    # the boundaries. Empty: 'target' one_cosine, 'paper' cosine.
    schedule: str = ""
    cosine_epochs: int = 0  # one_cosine: its length; 0: search's epochs and retrain's
    minimum_learning_rate: float = 0.0  # cosine_restarts: what each cosine falls to
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
    # So many neighbouring channels share a gate's logit; 0: all of a source's do. -1: 'target' 1, 'paper' 0.
    group_size: int = -1
    by_source: bool = True  # groups end where a source of a concatenated input ends; False: that input is one source
    gate_step: float = 0.05  # 'target': Adam's learning rate of the gates' logits
    gate_learning_rate: float = 1.0  # 'paper': as a multiple of the weights'; 3 to 10 helps runs of few epochs
    # 'paper': 'parameters' or 'multiply_adds' press each channel by its cost, 'constant' by nothing (see `tfnas.gate`)
    prior: str = "uniform"
    gate_dense: bool = False  # gate dense layers too, but for the classifier
    gate_pooling: bool = False  # gate pooling and Identity layers too, so that such an operation can be dropped
    include: str = ""  # glob patterns of layer names, separated by commas: exactly these are gated; empty: by kind
    exclude: str = ""  # glob patterns of layer names, separated by commas: never gated
    # A posterior that drops everything ends the search ('stop') or is told once ('warn'), one that does not move is
    # told once; 'off': neither (tfnas/training/collapse_guard.py). Changes no result, and may be changed during a run.
    guard: str = "stop"

    @property
    def gated_epochs(self) -> int:
        """Epochs after the warm-up."""
        return self.epochs - self.warmup_epochs

    @property
    def target(self) -> dict[str, float]:
        """The resource and the share that 'target' arrives at, by the names of `tfnas.gate`; empty for 'paper'."""
        return {name: share for name in ("parameters", "multiply_adds") if (share := getattr(self, name))}

    def resolved(self, retrain: Retrain) -> Search:
        """These settings, and where they leave it to the recipe, the recipe's values."""
        unset = {"schedule": "", "warmup_epochs": -1, "weight_decay": -1.0, "initial_drop": 0.0, "group_size": -1}
        if self.recipe == "target":
            recipe = ("one_cosine", (self.epochs + 1) // 3, retrain.weight_decay, *FIRST_GATES["target"])
            further: dict[str, Any] = {} if self.target else {"parameters": 0.5}
        else:
            recipe = ("cosine", 0, 0.0, *FIRST_GATES["paper"])
            further = {} if self.ell2 else {"ell2": 50.0}
        chosen: dict[str, Any] = dict(zip(unset, recipe, strict=True))
        chosen = {name: value for name, value in chosen.items() if getattr(self, name) == unset[name]}
        if chosen.get("schedule", self.schedule) == "one_cosine" and not self.cosine_epochs:
            # Said here, because search depends on it: with another number it is another search.
            further["cosine_epochs"] = self.epochs + max(0, retrain.epochs)
        return dataclasses.replace(self, **chosen, **further)

    def shortened(self, epochs: int) -> Search:
        """The same search in other epochs: all that is counted in epochs is in proportion.

        Args:
            epochs: at least 2 where there is a warm-up, which then leaves one of them to the gates.
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
        """Raises UserError for the first value out of range, of settings that are resolved."""
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


_RESOURCES = ("parameters", "multiply_adds", "latency")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Drawing candidates and ranking them (method.md, section 3)."""

    num_candidates: int = 1500
    num_random: int = 100  # equal-size random candidates of each kind, the baselines
    num_tested: int = 20  # candidates of each kind that are measured in full, and once all is fixed on test: the means
    # Draw from the posterior tilted until this share of the gated layers' kernel weights, of their multiply-adds, or of
    # their measured latency is expected to be kept; 0: as learned. At most one of the three.
    parameters: float = 0.0
    multiply_adds: float = 0.0
    latency: float = 0.0
    hard_limit: bool = False  # with a budget: draw a candidate again until it is within it, not only on average
    budgets: tuple[float, ...] = ()  # shares: sample at each of these too, for the front of accuracy against cost
    resource: str = "parameters"  # what `budgets` are shares of: 'parameters', 'multiply_adds' or 'latency'
    rank_by: str = "loss"  # 'loss' is the more reliable, 'accuracy' is the paper's
    racing: float = 0.95  # confidence of the race (tfnas/ranking/racing.py); 0 evaluates every candidate in full
    tolerance: float = 0.5  # standard errors by which the winner may then miss the best
    holdout: float = 0.2  # share of the validation images kept from the race, to measure the winner on
    # Training images on which every candidate gets batch-normalisation statistics of its own: search's are those of
    # relaxed, random gates. 0 keeps search's.
    recalibrate: int = 250
    ensemble: int = 0  # also measure the average of this many of the best, and of as many posterior samples
    batch_size: int = 250

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        fields.at_least("sample.num_candidates", self.num_candidates, 1)
        fields.at_least("sample.num_random", self.num_random, 1)
        fields.at_least("sample.num_tested", self.num_tested, 1)
        for field in _RESOURCES:
            share = getattr(self, field)
            fields.require(
                0 <= share < 1, f"sample.{field}", share, "a share in (0, 1), or 0 for the posterior as learned"
            )
        given = {field: getattr(self, field) for field in _RESOURCES if getattr(self, field)}
        fields.require(
            len(given) < 2, "sample.parameters, multiply_adds and latency", given, "one budget, the others 0"
        )
        fields.require(
            not self.hard_limit or bool(given or self.budgets), "sample.hard_limit", True, "set with a budget"
        )
        for share in self.budgets:
            fields.require(0 < share < 1, "sample.budgets", share, "shares in (0, 1)")
        fields.one_of("sample.resource", self.resource, _RESOURCES)
        fields.one_of("sample.rank_by", self.rank_by, ("loss", "accuracy"))
        fields.require(0 <= self.racing < 1, "sample.racing", self.racing, "a confidence in (0, 1), or 0 for no race")
        fields.at_least("sample.tolerance", self.tolerance, 0)
        fields.require(0 <= self.holdout < 1, "sample.holdout", self.holdout, "a share in [0, 1)")
        fields.at_least("sample.recalibrate", self.recalibrate, 0)
        fields.at_least("sample.ensemble", self.ensemble, 0)
        fields.at_least("sample.batch_size", self.batch_size, 1)


@dataclasses.dataclass(frozen=True)
class Retrain:
    """Further training of the network found; 0 epochs keeps the inherited weights."""

    epochs: int = 24
    # Of SGD with search's momentum, from here as a cosine to zero; 0: search's. Not used with 'one_cosine'.
    learning_rate: float = 0.0
    batch_size: int = 128
    # Decoupled, and of kernels alone: kernel -= learning rate x weight_decay x kernel. The customary penalty of 5e-4 on
    # the loss shrinks kernels ten times as fast under a momentum of 0.9, by 5e-4 / (1 - 0.9): that is the 5e-3 here.
    weight_decay: float = 5e-3
    layout: str = "gather"  # or 'mask' or 'shared': what readers of one tensor do who keep different channels of it
    channel_multiple: int = 1  # widen what every layer keeps to multiples of this many channels
    # Also train the full network without gates, as search and then these settings train the one found: the same epochs,
    # batches and learning rates.
    baseline: bool = True
    # Also train what was chosen otherwise, in the same epochs: random and one-path gates, the full network pruned by
    # magnitude. Costs about three more searches, and as many retrainings.
    controls: bool = True

    def resolved(self, search: Search) -> Retrain:
        """These settings, and where they leave it to search, search's."""
        return dataclasses.replace(self, learning_rate=self.learning_rate or search.learning_rate)

    def check(self) -> None:
        """Raises UserError for the first value out of range, of settings that are resolved."""
        fields.at_least("retrain.epochs", self.epochs, 0)
        fields.at_least("retrain.batch_size", self.batch_size, 1)
        fields.positive("retrain.learning_rate", self.learning_rate)
        fields.at_least("retrain.weight_decay", self.weight_decay, 0)
        fields.one_of("retrain.layout", self.layout, ("gather", "mask", "shared"))
        fields.at_least("retrain.channel_multiple", self.channel_multiple, 1)


@dataclasses.dataclass(frozen=True)
class Training:
    """How search and retraining are computed; `Config.distribution` says on what (docs/devices.md)."""

    # 'mixed_bfloat16' (TPUs, newer GPUs) or 'mixed_float16' (older GPUs; the loss is scaled): layers compute in 16
    # bits, weights, gates and regularisers stay in 32. So every layer of policy 'float32' does, also one that a model
    # of your own sets to it by hand; a layer of another policy keeps it.
    precision: str = "float32"
    accumulate: int = 1  # cut each replica's batch into this many, one after another, where it does not fit the memory
    jit_compile: bool = False  # compile the step with XLA: slower on CPUs; a TPU always does. `tfnas check` measures it
    checkpoint_minutes: float = 10.0  # within an epoch; each epoch's end has one anyway
    checkpoints_kept: int = 3  # of the last

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        fields.one_of("training.precision", self.precision, ("float32", "mixed_bfloat16", "mixed_float16"))
        fields.at_least("training.accumulate", self.accumulate, 1)
        fields.positive("training.checkpoint_minutes", self.checkpoint_minutes)
        fields.at_least("training.checkpoints_kept", self.checkpoints_kept, 1)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What a network must reach on the test split to be exported; each default asks for nothing."""

    min_accuracy: float = 0.0  # on test
    max_accuracy_loss: float = 1.0  # below the full network's test accuracy; needs retrain.baseline
    max_parameters: float = 1.0  # share of the full network's
    max_multiply_adds: float = 1.0  # share of the full network's

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        fields.require(0 <= self.min_accuracy <= 1, "evaluate.min_accuracy", self.min_accuracy, "a share in [0, 1]")
        for field in ("max_accuracy_loss", "max_parameters", "max_multiply_adds"):
            share = getattr(self, field)
            # The found network may be the better one: then its loss is negative, and so may be what is asked.
            least = -1 if field == "max_accuracy_loss" else 0
            fields.require(
                least <= share <= 1, f"evaluate.{field}", share, f"a share in [{least}, 1]; 1 asks for nothing"
            )


# What a network is exported as besides a SavedModel; '_int8' is quantised after training.
FORMATS = ("litert", "litert_int8", "onnx", "onnx_int8", "openvino")


@dataclasses.dataclass(frozen=True)
class Export:
    """The SavedModel, and other formats of it."""

    name: str = ""  # of the served model; empty: the data set's, see Data.short_name
    version: int = 1
    # Also answer how unsure the search is: by the average of this many of sample's best candidates, under the search's
    # weights, as the signature serve_uncertainty. 0: no such signature. Makes the SavedModel as many networks larger.
    uncertainty: int = 0
    # Images of more pixels are refused by their header, before anything is decoded: in a request, a file of a few
    # kilobytes may stand for gigabytes. Where data.image_size is not set, only the data's own size is taken.
    max_pixels: int = 25_000_000
    formats: tuple[str, ...] = ()  # of FORMATS, beside the SavedModel (docs/formats.md); need 'tfnas[formats]'
    calibration: int = 256  # training images from which '_int8' takes the ranges of values

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        fields.at_least("export.version", self.version, 1)
        fields.at_least("export.max_pixels", self.max_pixels, 1)
        fields.require(
            self.uncertainty == 0 or self.uncertainty > 1, "export.uncertainty", self.uncertainty, "0, or 2 or more"
        )
        for name in self.formats:
            if name == "openvino_int8":
                raise UserError(
                    "config: 'export.formats' has no 'openvino_int8': OpenVINO quantises with NNCF, which is not used "
                    "here; OpenVINO reads the file of 'onnx_int8'"
                )
            fields.one_of("export.formats", name, FORMATS)
        fields.require(len({*self.formats}) == len(self.formats), "export.formats", self.formats, "different formats")
        fields.at_least("export.calibration", self.calibration, 1)
        _check_file_name(self.name, self.name)


# What of search can be tuned, by its names there.
TUNED = ("ell2", "learning_rate", "gate_learning_rate", "temperature", "initial_drop")


@dataclasses.dataclass(frozen=True)
class Tune:
    """What `tfnas tune` tries: values of search's settings, each a search and a sample of its own.

    The methods 'grid' and 'random' take the values as they are, 'bayesian' and 'hyperband' anything between the
    smallest and the largest, evenly on a logarithmic scale. A setting without values is not tuned.
    """

    method: str = "grid"  # 'random', 'bayesian' or 'hyperband', KerasTuner's
    trials: int = 0  # at most; 0: all of 'grid' and of 'hyperband', whose number follows from search.epochs
    objective: str = "loss"  # or 'accuracy', of the best candidate on validation images that its race did not use
    budget: float = 1.0  # share of the full network's parameters that the best candidate may have; 1: any size
    ell2: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()
    gate_learning_rate: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()
    initial_drop: tuple[float, ...] = ()

    def values(self) -> dict[str, tuple[float, ...]]:
        """The settings of search that are tuned, each with its values."""
        return {name: given for name in TUNED if (given := getattr(self, name))}

    def check(self) -> None:
        """Raises UserError for the first value out of range."""
        fields.one_of("tune.method", self.method, ("grid", "random", "bayesian", "hyperband"))
        fields.at_least("tune.trials", self.trials, 0)
        if self.method in ("random", "bayesian"):
            fields.require(self.trials > 0, "tune.trials", self.trials, f"at least 1 with the method '{self.method}'")
        fields.one_of("tune.objective", self.objective, ("loss", "accuracy"))
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on besides the code and the data."""

    data: Data = Data()
    supernet: Supernet = Supernet()
    search: Search = Search()
    sample: Sample = Sample()
    retrain: Retrain = Retrain()
    training: Training = Training()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    tune: Tune = Tune()
    # The devices: 'auto', 'one_device', 'mirrored' (all GPUs of this machine), 'multi_worker' (all GPUs of the
    # processes that TF_CONFIG names) or 'tpu'. A run may be continued on others.
    distribution: str = "auto"
    seed: int = 0

    def check(self) -> Config:
        """This config with its recipe's values; raises UserError for the first out of range, or two that do not fit."""
        search, retrain = self.search.resolved(self.retrain), self.retrain.resolved(self.search)
        config = dataclasses.replace(self, search=search, retrain=retrain)
        config._check()
        return config

    def _check(self) -> None:
        fields.one_of("distribution", self.distribution, ("auto", "one_device", "mirrored", "multi_worker", "tpu"))
        fields.require(0 <= self.seed < _MOST, "seed", self.seed, f"at least 0 and below {_MOST}")
        for field in dataclasses.fields(self):
            if dataclasses.is_dataclass(section := getattr(self, field.name)):
                section.check()  # type: ignore[union-attr]
        compared = self.retrain.baseline or self.evaluate.max_accuracy_loss == 1
        expected = "left at 1 without retrain.baseline: there is no full network to compare with"
        fields.require(compared, "evaluate.max_accuracy_loss", self.evaluate.max_accuracy_loss, expected)
        members, leaders = self.export.uncertainty, min(self.sample.num_tested, self.sample.num_candidates)
        expected = f"at most sample.num_tested and sample.num_candidates, {leaders}: so many of the best are kept"
        fields.require(members <= leaders, "export.uncertainty", members, expected)
        for stage in ("search", "retrain"):
            batch, parts = getattr(self, stage).batch_size, self.training.accumulate
            fields.require(
                batch % parts == 0, f"{stage}.batch_size", batch, f"a multiple of training.accumulate, {parts}"
            )
        for key, value in _leaves(self):
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str):
                    fields.require(schema.is_plain(item), key, value, "text without control characters")
                elif isinstance(item, float):
                    fields.require(math.isfinite(item), key, value, "finite")
                else:
                    fields.require(item < _MOST, key, value, f"below {_MOST}")
        _check_file_name(self.export.name or self.data.short_name, self.export.name)


def _leaves(config: Config) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (
                (f"{field.name}.{inner.name}", getattr(value, inner.name)) for inner in dataclasses.fields(value)
            )
        else:
            yield field.name, value


def _check_file_name(name: str, received: str) -> None:
    """That `export/NAME` is a folder of its own, inside the working directory, which no other file's name takes."""
    fits = "/" not in name and len(name.encode(errors="replace")) <= _LONGEST_NAME
    expected = f"a name without '/', other than '.', '..' and 'results.json', of at most {_LONGEST_NAME} bytes"
    fields.require(fits and name not in (".", "..", "results.json"), "export.name", received, expected)
