"""A node of the graph, which is one call of a layer, and the questions that its family answers.

`Node` answers for a layer that is left whole. A family is a subclass that answers otherwise; `tfnas.layers.FAMILIES`
lists them all, and a class for another layer is added there. The walks over the graph (in `graph`, `cutting` and
`ranking`) ask, and so know no family's rules.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfnas.layers.calls import Call, copy_of
from tfnas.layers.records import Builder, Channels, Folded, State, Value

Fed = dict[str, Any]  # what one computation is given for one architecture


def is_gate(layer: Any) -> bool:
    """Whether a layer is `Gated`, which this folder cannot import."""
    return getattr(layer, "gates_inputs", False)


def gates_units(layer: Any) -> bool:
    """Whether a layer is one of those that gate channel units, which this folder cannot import."""
    return getattr(layer, "gates_units", False)


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer or operation in the graph, and the rules of its family.

    Attributes:
        name: unique in the graph; that of the layer, prefixed with the names of the nested models it is in.
        layer: the Keras layer or operation; for a gated one, the wrapper.
        inputs: indices of the nodes it reads, in order.
        input_channels: size of the last axis of each of them.
        input_spatial: the axes between batch and channels of each of them.
        num_channels: C, the size of the last axis of its output; 1 if that is open, for all of them together.
        spatial: the axes between batch and channels of its output; () for a vector.
        called: how it was called; `call` calls it so again.
        shared: whether its layer has weights and is called by other nodes too.
        examples: how many of its examples there are for each of the model's: several for windows or frames.
        is_open: whether the last axis of its output has no fixed size, as that of tokens.
        open_inputs: whether that of each of its inputs has none.
    """

    LAYERS: ClassVar[tuple[type, ...]] = ()  # Keras's classes that are of this family
    kernel_is_cut: ClassVar[bool] = False  # whether it has a kernel whose input channels can be cut
    carries: ClassVar[bool] = False  # whether its channels are those of its inputs, one input after the other
    # Whether it takes statistics over channels, so that a supernet of units gives it the gates of its input's channels.
    weighs_channels: ClassVar[bool] = False
    # Inputs that it multiplies by each other and sums over channels; a channel exists in all of them or in none.
    meets: ClassVar[tuple[int, ...]] = ()
    # Whether it multiplies what it computes by its first input, channel by channel, so that gates of that are its own.
    # It computes all of these channels, whichever are read.
    multiplies: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = False  # whether a call with a mask, which is its last input, may be of this family
    INSIDE: ClassVar[Any] = None  # the family of a node before it for units inside the layer, which it reads first
    inside: ClassVar[bool] = False  # whether it is such a node

    name: str
    layer: Any
    inputs: tuple[int, ...]
    input_channels: tuple[int, ...]
    input_spatial: tuple[tuple[int | None, ...], ...]
    num_channels: int
    spatial: tuple[int | None, ...]
    called: Call
    shared: bool = False
    examples: int = 1
    is_open: bool = False
    open_inputs: tuple[bool, ...] = ()

    @property
    def inner(self) -> Any:
        """The layer itself, without a gate round it."""
        return self.layer.layer if is_gate(self.layer) else self.layer

    @property
    def has_weights_of(self) -> tuple[int, bool]:
        """Identifies whose weights it has, which calls of one layer have in common."""
        return id(self.inner), self.inside

    @property
    def gated(self) -> bool:
        """Whether the layer is wrapped in a gate."""
        return is_gate(self.layer)

    def call(self, layer: Any, tensors: Sequence[Any], training: bool | None = None) -> Any:
        """Calls `layer`, a stand-in for this node's, on tensors that stand in for its inputs, as it was called.

        Args:
            layer: of this node, or made for it.
            tensors: one for each input; fewer for a sum that has lost addends.
            training: what the model is called with, which comes before what the layer was called with. None: nothing.
        """
        return self.called.again(layer, tensors, training)

    def infer(self, tensors: Sequence[Any]) -> tf.Tensor:
        """The output at inference, without a gate; numbers in float32 whatever the layer's precision."""
        output = tf.convert_to_tensor(self.call(self.inner, tensors, training=False))  # it may be a variable
        return tf.cast(output, tf.float32) if output.dtype.is_floating else output

    # Which layers it is.

    @classmethod
    def is_of(cls, layer: Any) -> bool:
        """Whether a built layer may be of this family, whatever its call."""
        return isinstance(layer, cls.LAYERS)

    @classmethod
    def takes(cls, layer: Any, record: Any, called: Call) -> bool:
        """Whether a layer is of this family, considering how it was called.

        Args:
            layer: built, without a gate round it.
            record: Keras's record of the call, with its input and output tensors.
            called: the same with its arguments checked.
        """
        return cls.is_of(layer)

    @classmethod
    def check(cls, layer: Any, name: str, record: Any, called: Call) -> None:
        """Raises UserError, naming the layer and what to do, for settings that this family cannot follow."""

    # Gates.

    @property
    def gateable(self) -> bool:
        """Whether a gate may stand on its input channels."""
        return self.kernel_is_cut

    @property
    def has_kernel(self) -> bool:
        """Whether it is a convolution of any kind or Dense, cut or not."""
        return self.kernel_is_cut

    @classmethod
    def channel_kernels(cls, layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
        """A gateable layer's kernels, each with the shape (before, K, after) that has its input channels in the middle.

        A layer without a kernel (pooling) has none.
        """
        return []

    # Which channels it makes of which.

    @functools.cached_property
    def all_kept(self) -> np.ndarray:
        """A mask that keeps all channels of its first input, bool, shape (K,)."""
        return np.ones(self.input_channels[0] if self.inputs else 0, bool)

    @property
    def zero_to_zero(self) -> bool:
        """Whether zeros as input give zeros, whatever the weights."""
        return False

    @property
    def full_output(self) -> bool:
        """Whether output channels are only computed together."""
        return True

    @property
    def holds_more(self) -> bool:
        """Whether the tensor it computes may hold channels that are not live."""
        return False

    def state(self, sources: Sequence[State], kept: Any) -> State:
        """Returns the state of its output channels.

        Args:
            sources: what its inputs' channels are.
            kept: which input channels it keeps, bool, shape (K,) or ().
        """
        return self.everywhere(any(x.depends.any() for x in sources), True, False)

    def everywhere(self, depends: Any, explicit: Any, zero: Any) -> State:
        """The same state for all output channels."""
        return State(*(np.full(self.num_channels, bool(value)) for value in (depends, explicit, zero)))

    def read(self, live: np.ndarray) -> list[np.ndarray]:
        """Which channels of each input it reads for its live outputs, were all kept; bool, shape (its channels,)."""
        return [np.full(size, bool(live.any())) for size in self.input_channels]

    def linked(self, available: Sequence[np.ndarray]) -> Any:
        """Which output channels it computes because its inputs hold theirs, where the flow is linked; bool.

        Args:
            available: live channels of each input, bool.
        """
        return False

    def held(self, live: np.ndarray) -> np.ndarray:
        """Indices of the channels of the tensor it computes: the live ones, and what comes with them."""
        return np.flatnonzero(live)

    def given(self, x: Channels, j: int) -> np.ndarray:
        """Indices of the channels of input `j` that it is given."""
        return np.arange(self.input_channels[j])

    # Which channels exist with which.

    @property
    def mixes(self) -> bool:
        """Whether each output channel reads all input channels, so that it reads units and writes others."""
        return False

    def ties(self, j: int) -> np.ndarray | None:
        """The channel of input `j` that each output channel exists with, or -1; int, shape (C,).

        None: it ties none of this input's channels. If it does not mix either, it needs all of them.
        """
        return None

    def pins(self, j: int) -> bool:
        """Whether it needs all channels of input `j`."""
        return self.ties(j) is None and not self.mixes and j not in self.meets

    @property
    def rank(self) -> int:
        """The number of axes of its output; 1 for one number an example, without an axis of channels."""
        if self.is_open and not self.spatial:
            return len(self.called.record.output_tensors[self.called.output].shape)
        return len(self.spatial) + 2

    @property
    def reads_open_axes(self) -> bool:
        """Whether it takes the open axes of its inputs and output as one channel, of which it needs and makes all."""
        if self.is_open and any(self.ties(j) is not None for j in range(len(self.inputs))):
            return False
        return all(self.pins(j) for j, is_open in enumerate(self.open_inputs) if is_open)

    def together(self, j: int | None) -> np.ndarray | None:
        """A number for every channel of input `j`, or of the output if None; those of one number exist together.

        None: each by itself.
        """
        return None

    # What it costs.

    @property
    def positions(self) -> int | None:
        """Number of times that its kernel is applied to one of its examples; None without a fixed size."""
        return None if None in self.spatial else math.prod(size or 0 for size in self.spatial)

    def count(self, x: Channels) -> tuple[int, int]:
        """Its parameters, and those of them that are multiplied at every position; of a node that works."""
        return self.count_of(int(x.available.sum()), int(x.live.sum()))

    def count_of(self, inputs: int, outputs: int) -> tuple[int, int]:
        """The same by the numbers of its input and output channels, in each of which it is linear."""
        layer = self.inner
        if not isinstance(layer, keras.Layer):
            return 0, 0
        variables = {id(v): v for part in layer._flatten_layers() for v in part._trainable_variables}  # frozen or not
        weights = math.prod(layer.kernel.shape) if self.has_kernel else 0
        return sum(math.prod(v.shape) for v in variables.values()), weights

    # What it weighs.

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of squares of the weights that belong to one channel, float64.

        Returns:
            Of those that read each channel of its first input, shape (K,), and of those that make each output channel,
            shape (C,); zeros for a layer that is left whole. A kernel that mixes channels is in both.
        """
        return np.zeros(self.all_kept.size), np.zeros(self.num_channels)

    # What is constant behind it.

    def constants(self, x: Folded) -> Any:
        """Values of its output channels that are constant, shape (C,) or (); of others anything."""
        return np.float32(0)

    # How it is cut.

    def cut(self, x: Folded, sources: Sequence[Value], build: Builder) -> Any:
        """The tensor that a subnet computes, with the channels `held`; of a node that works."""
        tensors = [build.gather(source, self.given(x, j)) for j, source in enumerate(sources)]
        return self.rebuilt(build, tensors, self.inner.get_weights() if getattr(self.inner, "weights", None) else [])

    def rebuilt(
        self, build: Builder, tensors: Sequence[Any], weights: Sequence[np.ndarray] = (), **changes: Any
    ) -> Any:
        """The output of a copy of its layer, with other settings and weights, on these tensors."""
        if not isinstance(self.inner, keras.Layer):
            return self.call(self.inner, tensors)
        if id(self.inner) in build.shared:
            return self.call(build.shared[id(self.inner)], tensors)
        layer = copy_of(self.inner, self.name, **changes)
        if self.shared:
            build.shared[id(self.inner)] = layer
        output = self.call(layer, tensors)
        if weights:
            build.weights.append((layer, list(weights)))
        return output

    # How it is computed for any architecture.

    @property
    def computation(self) -> type[Computation]:
        """Returns its computation in the programs of ranking."""
        return WholeComputation


@dataclasses.dataclass(frozen=True)
class Operand:
    """One input of a computation.

    Attributes:
        tensor: makes the tensor with the channels that were asked for, constants written out.
        absent: makes a bool scalar: whether all that was asked for is constant.
        constants: of the channels asked for, where it is absent, float32.
    """

    tensor: Callable[[], tf.Tensor]
    absent: Callable[[], tf.Tensor]
    constants: tf.Tensor


class Computation:
    """A node as one step of a program that takes any architecture, without being traced again.

    This one calls the layer on the channels that it is given. Tensors have those of `Node.held` if the flow is linked.

    Args:
        node: what is computed.
        shape: spatial axes of its output, all known.
        source_shapes: those of its inputs.
        calibrated: names of the normalizations whose statistics are not folded but given when the program runs, as
            'mean' and 'variance', or computed from the batch.
        bare: whether its inputs never hold a constant.

    Attributes:
        normalizes: the one of these normalizations that it computes, if any.
    """

    normalizes: Any = None

    def __init__(
        self,
        node: Node,
        shape: tuple[int, ...],
        source_shapes: Sequence[tuple[int, ...]],
        calibrated: Collection[str] = (),
        bare: bool = False,
    ):
        self.node = node
        self.shape = shape
        self.source_shapes = source_shapes
        self.calibrated, self.bare = calibrated, bare

    def takes_held(self, source: Node) -> bool:
        """Whether it is always given just what an input's tensor holds."""
        return False

    def absorbs(self, node: Node) -> bool:
        """Whether it computes another node too, which alone reads its output and has no gate."""
        return False

    def wanted(self, x: Channels, j: int) -> np.ndarray | None:
        """Indices of the channels of input `j` that it is given; None if it does not look at them."""
        return self.node.given(x, j)

    def signature(self) -> Fed:
        """Returns the tf.TensorSpec of the values of `feed`."""
        return {}

    def feed(self, x: Folded) -> Fed:
        """Its weights, for an architecture under which it works."""
        return {}

    def run(self, operands: Sequence[Operand], fed: Fed) -> tf.Tensor:
        """Its output."""
        return self.compute([operand.tensor() for operand in operands], fed)

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        """Its output."""
        return self.node.infer([self.sized(x, j, None) for j, x in enumerate(tensors)])

    def sized(self, x: tf.Tensor, j: int, channels: int | None) -> tf.Tensor:
        """Input `j` with its sizes known when it is traced, as an operation may need them."""
        known, read = (None, *self.source_shapes[j]), self.node.called.inputs
        if len(read) == len(self.source_shapes) and read[j].shape[0] is not None:
            known = read[j].shape[:-1]  # the batch is in another axis
        return tf.ensure_shape(x, (*(known if x.shape.rank == len(known) + 1 else x.shape[:-1]), channels))


class Normalizing(Computation, abc.ABC):
    """A computation that can use the statistics of the batch, where `normalizes` says so."""

    @abc.abstractmethod
    def calibrate(self, tensors: list[tf.Tensor], fed: Fed) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Output if `normalizes` uses the batch's own mean and variance, and these, float32, shape (channels,)."""


class WholeComputation(Computation):
    """A layer computed with all its channels, as the supernet does, and then cut to those that are read."""

    def takes_held(self, source: Node) -> bool:
        # A model's input has all its channels, and may be no numbers to gather: a mask's.
        return not source.inputs

    def wanted(self, x: Channels, j: int) -> np.ndarray | None:
        return np.arange(self.node.input_channels[j])

    def signature(self) -> Fed:
        more = {"held": tf.TensorSpec((None,), tf.int32)}
        return {**more, "mask": tf.TensorSpec((self.node.input_channels[0],))} if self.node.gated else more

    def feed(self, x: Folded) -> Fed:
        fed = {"held": self.node.held(x.live).astype(np.int32)}
        return {**fed, "mask": x.kept.astype(np.float32)} if self.node.gated else fed

    def compute(self, tensors: list[tf.Tensor], fed: Fed) -> tf.Tensor:
        node = self.node
        sizes = [None if j else size for size, j in zip(node.input_channels, node.open_inputs, strict=True)]
        full = [self.sized(x, j, sizes[j]) for j, x in enumerate(tensors)]
        if self.node.gated:
            full = [full[0] * fed["mask"]]
        output = self.node.infer(full)
        every = tf.equal(tf.size(fed["held"]), self.node.num_channels)
        return tf.cond(every, lambda: output, lambda: tf.gather(output, fed["held"], axis=-1))
