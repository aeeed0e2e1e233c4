"""Random Keras models of everything that a graph may have, and random masks; a function of a seed alone."""

import math

import keras
import numpy as np

from tfnas.search_space.architecture import Architecture

L = keras.layers
# Whatever goes in, these let it through to the output: no dead zones. LayerNormalization, softmax and the larger of two
# numbers are left out with the others, because of few channels they may make a constant.
SMOOTH = ("linear", "tanh", "elu", "softplus", "sigmoid")
ANY = (*SMOOTH, "relu", "relu6", "hard_sigmoid", "leaky_relu")


class Builder:
    """Draws one model.

    Args:
        seed: of the draw.

    Attributes:
        rank: number of spatial axes, 1 to 3.
        smooth: whether every operation passes on what its input depends on, numerically too.
        ungateable: names of layers that `gate` must leave alone.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 71])
        self.rank = int(self.rng.choice([1, 2, 3], p=[0.2, 0.65, 0.15]))
        self.smooth = bool(self.rng.random() < 0.5)
        self.size = {1: 12, 2: 8, 3: 5}[self.rank]
        self.ungateable = []

    def model(self) -> keras.Model:
        """A functional model of one to three inputs, with one or two outputs."""
        inputs = [self.image() for _ in range(1 + (self.rng.random() < 0.15))]
        maps = [self.conv(image, kernel=1, strides=1) for image in inputs]
        for _ in range(int(self.rng.integers(5, 13))):
            # Mostly in a row, sometimes a branch from further up.
            x = maps[-1] if self.rng.random() < 0.75 else self.pick(maps)
            maps.append(self.step(x, maps))
        last = maps[-1]
        for other in maps[: len(inputs)]:  # so that every input is read
            last = self.joined(last, other)
        last = self.conv(last, kernel=1, strides=1)  # one convolution to gate, at least
        outputs = [self.head(last)]
        if self.rng.random() < 0.15:
            outputs.append(self.head(self.pick(maps)))
        model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0])
        there = {layer.name for layer in model._flatten_layers()}
        self.ungateable = [name for name in self.ungateable if name in there]  # others lead to no output
        return model

    def image(self):
        """An input; several are of one size, so that their maps can meet."""
        return keras.Input((self.size,) * self.rank + (int(self.rng.integers(1, 4)),))

    def step(self, x, maps):
        """One more map, from `x` and perhaps others."""
        steps = [self.conv, self.conv, self.transposed, self.normalized, self.activated, self.pooled, self.passed]
        steps += [self.excited, self.attended, self.padded, self.resized, self.number]
        steps += [self.broadcast] * 3  # which few masks hit where it matters
        steps += [self.residual, self.nested, lambda x: self.joined(x, self.pick(maps)), self.opaque]
        if self.rank < 3:
            steps += [self.depthwise, self.separable]
        made = self.pick(steps)(x)
        # Neither so large that it takes long, nor so small that nothing is left to do.
        return made if math.prod(made.shape[1:-1]) <= 2 * self.size**self.rank else self.shrunk(made)

    def head(self, x):
        """Three numbers from a map."""
        kind = self.rng.integers(3)
        if kind == 0:
            x = self.layer("GlobalAveragePooling")()(x)
        elif kind == 1 and not self.smooth:
            x = self.layer("GlobalMaxPooling")()(x)
        else:
            x = L.Flatten()(self.shrunk(x))
        if self.rng.random() < 0.6:
            x = L.Dense(int(self.rng.integers(2, 6)), activation=self.activation())(x)
        return L.Dense(3)(x)

    def conv(self, x, kernel=None, strides=None, filters=None, padding=None):
        """A convolution, also one that filters each channel by itself, or whole groups of them."""
        settings = self.window(x, kernel, strides, padding)
        channels = x.shape[-1]
        if kernel is None and filters is None and channels > 1 and self.rng.random() < 0.15:
            groups = 2 if channels == 4 and self.rng.random() < 0.5 else channels
            layer = self.layer("Conv")(channels * int(self.rng.integers(1, 3)), groups=groups, **settings)
            if groups != channels:
                self.ungateable.append(layer.name)
            return layer(x)
        filters = filters or int(self.rng.integers(1, 5))
        if not self.smooth and filters > 1 and self.rng.random() < 0.05:
            settings["activation"] = "softmax"
        if self.rank == 1 and self.rng.random() < 0.2:
            settings["padding"] = "causal"
        return self.layer("Conv")(filters, **settings)(x)

    def window(self, x, kernel=None, strides=None, padding=None, dilated=True):
        """Settings of a convolution that its input is large enough for."""
        smallest = min(x.shape[1:-1])
        kernel = kernel or int(self.rng.integers(1, min(4, smallest + 1)))
        strides = strides or int(self.rng.choice([1, 2], p=[0.8, 0.2]))
        padding = padding or str(self.rng.choice(["valid", "same"]))
        settings = {
            "kernel_size": kernel,
            "strides": strides,
            "padding": padding,
            "use_bias": bool(self.rng.random() < 0.7),
            "activation": self.activation(),
        }
        fits = 2 * (kernel - 1) < smallest
        if dilated and strides == 1 and fits and self.rng.random() < 0.2:
            settings["dilation_rate"] = 2
        return settings

    def depthwise(self, x):
        """A depthwise convolution."""
        settings = self.window(x)
        return self.layer("DepthwiseConv")(depth_multiplier=int(self.rng.integers(1, 3)), **settings)(x)

    def separable(self, x):
        """A separable one."""
        settings = self.window(x)
        filters, multiplier = int(self.rng.integers(1, 5)), int(self.rng.integers(1, 3))
        return self.layer("SeparableConv")(filters, depth_multiplier=multiplier, **settings)(x)

    def transposed(self, x):
        """A transposed one."""
        settings = self.window(x, dilated=False)
        if max(x.shape[1:-1]) * settings["strides"] > 1.5 * self.size:
            settings["strides"] = 1
        if settings["strides"] > settings["kernel_size"]:  # leaves positions that see nothing
            settings["kernel_size"] = settings["strides"]
        return getattr(L, f"Conv{self.rank}DTranspose")(int(self.rng.integers(1, 5)), **settings)(x)

    def normalized(self, x):
        """Batch normalization, mostly behind a convolution of its own."""
        if self.rng.random() < 0.7:
            x = self.conv(x)
        layer = L.BatchNormalization(scale=bool(self.rng.random() < 0.8), center=bool(self.rng.random() < 0.8))
        return layer(x, training=False) if self.rng.random() < 0.2 else layer(x)

    def activated(self, x):
        """An activation, as a layer or an operation."""
        if not self.smooth and self.rng.random() < 0.3:
            return self.pick([L.ReLU(), L.LeakyReLU(), keras.ops.relu])(x)
        return self.pick([L.Activation(self.activation()), L.ELU(), keras.ops.tanh])(x)

    def pooled(self, x):
        """Maximum or average of a window."""
        if min(x.shape[1:-1]) < 2:
            return x
        kind = "AveragePooling" if self.rng.random() < 0.5 else "MaxPooling"
        return self.layer(kind)(
            2, strides=int(self.rng.integers(1, 3)), padding=str(self.rng.choice(["valid", "same"]))
        )(x)

    def passed(self, x):
        """What does nothing at inference."""
        return self.pick([L.Dropout(0.3), L.Identity(), L.GaussianNoise(0.1), self.layer("SpatialDropout")(0.2)])(x)

    def squeezed(self, x, filters, activation):
        """One position of `filters` channels, from the whole map."""
        s = self.layer("GlobalAveragePooling")(keepdims=True)(x)
        if self.rng.random() < 0.5:
            s = self.conv(s, kernel=1, strides=1)
        if self.rng.random() < 0.5:
            return L.Dense(filters, activation=activation)(s)
        return self.layer("Conv")(filters, 1, activation=activation, use_bias=bool(self.rng.random() < 0.7))(s)

    def excited(self, x):
        """Squeeze and excite."""
        return L.Multiply()([x, self.squeezed(x, x.shape[-1], "sigmoid")])

    def attended(self, x):
        """All channels times, plus, or by one map."""
        one = self.layer("Conv")(1, 1, activation="sigmoid", use_bias=bool(self.rng.random() < 0.7))(x)
        return self.pick([lambda: x * one, lambda: x + one, lambda: x / (one + 0.5)])()

    def broadcast(self, x):
        """A map and one position, joined in either order."""
        y = self.conv(x)
        both = [y, self.squeezed(x, y.shape[-1], self.activation())]  # neither from the other
        return self.merge()(both if self.rng.random() < 0.5 else both[::-1])

    def padded(self, x):
        """Zeros round it, or a border less."""
        if min(x.shape[1:-1]) > 3 and self.rng.random() < 0.4:
            return self.layer("Cropping")(1)(x)
        return self.layer("ZeroPadding")(1)(x)

    def resized(self, x):
        """Twice as large, if it is small."""
        return self.layer("UpSampling")(2)(x) if max(x.shape[1:-1]) <= self.size // 2 else self.shrunk(x)

    def number(self, x):
        """With a number, or with an array, which only channel units cut."""
        if self.rng.random() < 0.3:
            return x + self.rng.normal(size=x.shape[-1]).astype("float32")
        return x + 0.7 if self.rng.random() < 0.5 else x * 1.3

    def residual(self, x):
        """A block beside a shortcut."""
        y = self.conv(x, kernel=3 if min(x.shape[1:-1]) >= 3 else 1, strides=1, padding="same")
        if self.rng.random() < 0.5:
            y = L.BatchNormalization()(y)
        y = self.conv(y, kernel=1, strides=1, filters=x.shape[-1])
        return self.merge()([x, y] if self.rng.random() < 0.5 else [y, x])

    def nested(self, x):
        """A model in the model."""
        inner = keras.Input(x.shape[1:])
        if self.rng.random() < 0.5:
            return keras.Sequential(
                [inner, self.layer("Conv")(3, 1, activation=self.activation()), L.BatchNormalization()]
            )(x)
        return keras.Model(inner, self.residual(inner))(x)

    def joined(self, x, other):
        """Two maps, brought to one size: side by side or one on the other."""
        while other.shape[1:-1] != x.shape[1:-1]:
            if math.prod(x.shape[1:-1]) == 1:
                other = self.layer("GlobalAveragePooling")(keepdims=True)(other)
            elif math.prod(other.shape[1:-1]) == 1:
                x = self.layer("GlobalAveragePooling")(keepdims=True)(x)
            else:
                x, other = self.resampled(x, other)
        if self.rng.random() < 0.5:
            return L.Concatenate()(self.pick([[x, other], [x, other], [x, x], [x, x, other]]))
        if x.shape[-1] != other.shape[-1]:
            other = self.conv(other, kernel=1, strides=1, filters=x.shape[-1])
        elif x is other:
            return x
        return self.merge()([x, other])

    def resampled(self, x, other):
        """Both as large as the smaller is along every axis."""
        sizes = [min(pair) for pair in zip(x.shape[1:-1], other.shape[1:-1], strict=True)]

        def cropped(y):
            surplus = [(0, have - size) for have, size in zip(y.shape[1:-1], sizes, strict=True)]
            return self.layer("Cropping")(surplus if self.rank > 1 else surplus[0])(y) if any(map(sum, surplus)) else y

        return cropped(x), cropped(other)

    def opaque(self, x):
        """What reads all channels and is not cut."""
        if self.smooth:
            return L.Rescaling(0.7, offset=0.1)(x)
        layers = [L.Rescaling(0.7, offset=0.1), L.LayerNormalization(), L.UnitNormalization()]
        return self.pick([*layers, self.normalized_by_hand, self.reduced, self.mixed])(x)

    def normalized_by_hand(self, x):
        """Statistics over channels, by operations."""
        if self.rng.random() < 0.5:
            x = x - keras.ops.mean(x, -1, keepdims=True)
        return x * keras.ops.rsqrt(keras.ops.mean(keras.ops.square(x), -1, keepdims=True) + 1e-2)

    def reduced(self, x):
        """All channels times a map of their sum or of their extremes."""
        kinds = [keras.ops.sum, keras.ops.max, keras.ops.min, keras.ops.var]
        made = [kind(x, axis=-1, keepdims=True) for kind in self.rng.choice(kinds, 2, replace=False)]
        return x * self.layer("Conv")(1, 1, activation="sigmoid")(keras.ops.concatenate(made, axis=-1))

    def mixed(self, x):
        """Positions weighed by what they hold, which are sums over all channels."""
        rows = keras.ops.reshape(x, (-1, math.prod(x.shape[1:-1]), x.shape[-1]))
        scores = L.Dense(rows.shape[1])(rows)
        if self.rng.random() < 0.5:
            query, key = L.Dense(4)(rows), L.Dense(4)(rows)
            scores = keras.ops.matmul(query, keras.ops.transpose(key, (0, 2, 1)))
        weights = keras.ops.softmax(scores, axis=1)
        mixed = keras.ops.matmul(weights, rows)
        if self.rng.random() < 0.5:
            mixed = keras.ops.einsum("bts,bsc->btc", weights, rows)
        return keras.ops.reshape(mixed, (-1, *x.shape[1:]))

    def shrunk(self, x):
        """A smaller map."""
        return self.layer("AveragePooling")(2)(x) if min(x.shape[1:-1]) > 3 else x

    def merge(self):
        """A layer that joins two maps channel by channel."""
        merges = [L.Add, L.Add, L.Add, L.Subtract, L.Multiply, L.Average]
        return self.pick(merges if self.smooth else [*merges, L.Maximum, L.Minimum])()

    def activation(self):
        """One without a dead zone, if the model is to have none."""
        return str(self.rng.choice(SMOOTH if self.smooth else ANY, p=None)) if self.rng.random() < 0.6 else "linear"

    def layer(self, name):
        """Keras's class for this number of axes."""
        return getattr(L, f"{name}{self.rank}D")

    def pick(self, things):
        """One of them."""
        return things[int(self.rng.integers(len(things)))]


def masks(supernet, count, rng):
    """Random architectures: single channels, whole layers, and several layers in a row gone, from mild to brutal."""
    names = list(supernet.gated_layers)
    sizes = {name: layer.mask.shape[0] for name, layer in supernet.gated_layers.items()}
    for i in range(count):
        drop = rng.choice([0.0, 0.2, 0.5, 0.7])
        keep = {name: rng.random(size) >= drop for name, size in sizes.items()}
        for name in names:
            if not keep[name].any() and rng.random() < 0.7:  # of one or two channels nothing is left too often
                keep[name][rng.integers(sizes[name])] = True
        if i % 3 == 1:
            for name in rng.choice(names, min(3, len(names)), replace=False):
                keep[name][:] = False
        elif i % 3 == 2:  # in the graph's order, so mostly of one branch
            first = int(rng.integers(len(names)))
            for name in names[first : first + int(rng.integers(1, 4))]:
                keep[name][:] = False
        yield Architecture(keep)


def connected(supernet, keep, rng):
    """The architecture that keeps these channels (`keep`: name -> mask), and more if no input reaches the outputs.

    So it is in most deep networks without skips. Layers then get half of their channels back, those that lost all of
    them first, until something does; to draw until it happens might take for ever.
    """
    keep = dict(keep)
    while not supernet.graph.flow(keep).reaches_outputs():
        name = rng.choice([name for name, mask in keep.items() if not mask.any()] or list(keep))
        keep[name] = keep[name] | (rng.random(len(keep[name])) < 0.5)
    return Architecture(keep)


def architecture(supernet, rng, rates=(0.0, 0.6, 1.0)):
    """A random connected one, of each of whose layers a share of the channels is kept that is drawn from `rates`."""
    keep = {n: rng.random(g.mask.shape[0]) < rng.choice(rates) for n, g in supernet.gated_layers.items()}
    return connected(supernet, keep, rng)
