"""Whether bounds hold, and how nearly: each resource alone and two together, from .1 to .95, in a few steps, one run.

    .venv/bin/python -m benchmarks.bounds [--steps=200] [--shares=0.1,0.25,0.5,0.75,0.95]

For a chain, a residual network, a dense block and depthwise convolutions (16 x 16 images of noise): the expected share
that the multipliers have reached after the last step, and what the networks that are sampled have of their bound, or
of the one of two that is nearer: the most probable one, and the smallest and largest of 50 candidates. 'held' means
that none exceeds a bound, and that each has at least 97 % of one, or cannot take another unit. A bound that the inner
groups cannot reach gates the streams too; one out of reach is refused.
"""

import keras
import numpy as np
from absl import app, flags

import tfnas
from benchmarks import records
from tfnas.common.errors import UserError

L = keras.layers

_STEPS = flags.DEFINE_integer("steps", 200, "Training steps of each search.")
_SHARES = flags.DEFINE_list("shares", ["0.1", "0.25", "0.5", "0.75", "0.95"], "Bounds.")
_CANDIDATES = flags.DEFINE_integer("candidates", 50, "Networks sampled.")
_RECORD = records.flag()
_NETWORKS = flags.DEFINE_list("networks", ["chain", "residual", "dense", "depthwise"], "Which networks.")


def _unit(x, filters, **options):
    x = L.Conv2D(filters, options.pop("kernel", 3), padding="same", use_bias=False, **options)(x)
    return L.ReLU()(L.BatchNormalization()(x))


def _chain(x):
    for filters in (16, 32, 32, 64):
        x = _unit(x, filters, strides=2 if filters > 16 else 1)
    return x


def _residual(x):
    x = _unit(x, 16)
    for filters in (16, 32):
        for block in range(2):
            y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(_unit(x, filters)))
            x = L.ReLU()(L.Add()([x if block or filters == 16 else _unit(x, filters, kernel=1), y]))
        x = L.MaxPooling2D(2)(x)
    return x


def _dense(x):
    x = L.Conv2D(16, 3, padding="same", use_bias=False)(x)
    for _ in range(4):
        y = L.Conv2D(32, 1, use_bias=False)(L.ReLU()(L.BatchNormalization()(x)))
        y = L.Conv2D(12, 3, padding="same", use_bias=False)(L.ReLU()(L.BatchNormalization()(y)))
        x = L.Concatenate()([x, y])
    return _unit(x, 32, kernel=1)


def _depthwise(x):
    x = _unit(x, 16)
    for filters in (32, 64, 64):
        x = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
        x = _unit(x, filters, kernel=1)
    return x


_BODIES = {"chain": _chain, "residual": _residual, "dense": _dense, "depthwise": _depthwise}


def _model(name):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(_BODIES[name](image))))


def _row(name, bounds, images, labels):
    try:
        supernet = tfnas.gate(_model(name), steps=_STEPS.value, num_examples=1e4, **bounds)
    except UserError as error:
        return ["refused", "-", "-", "-", "-", str(error)[:60]]
    supernet.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
    supernet.fit(images, labels, batch_size=32, epochs=1, steps_per_epoch=_STEPS.value, verbose=0)
    posterior = supernet.posterior()
    full = tfnas.cost(supernet)
    drawn = posterior.sample(_CANDIDATES.value, seed=0)
    shares = {
        resource: [getattr(tfnas.cost(supernet.graph, a), resource) / getattr(full, resource) for a in drawn]
        for resource in bounds
    }
    # The bound that comes nearest to its limit, for each candidate.
    nearest = [max(values[i] / bounds[resource] for resource, values in shares.items()) for i in range(len(drawn))]
    filled = all(ratio >= 0.97 or _is_full(posterior, a) for ratio, a in zip(nearest, drawn, strict=True))
    verdict = ("held" if max(nearest) <= 1 else "EXCEEDED") + ("" if filled else ", NOT FILLED")
    expected = ", ".join(f"{posterior.expected_share(resource):.3f}" for resource in bounds)
    numbers = [f"{100 * value:.1f} %" for value in (nearest[0], min(nearest), max(nearest))]
    return [expected, *numbers, str(len(drawn)), verdict]


def _is_full(posterior, architecture):
    """Whether no group can take another unit within the bounds."""
    form = posterior.form
    kept = np.array([architecture[group.name].sum() for group in form.groups])
    more = np.array([kept + (np.arange(kept.size) == g) for g, group in enumerate(form.groups) if kept[g] < group.size])
    costs = form.counts(form.closed(more))
    return all(any(costs[resource][i] > most for resource, most in posterior.bounds.items()) for i in range(len(more)))


def main(_):
    """Prints one table."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32 * 8, 16, 16, 3)).astype("float32").repeat(_STEPS.value // 8 + 1, axis=0)
    labels = rng.integers(0, 10, len(images))
    record = records.Record(_RECORD.value)
    columns = ["network", "bounds", "expected after the search", "most probable, of the bound", "least", "most"]
    record.heading(*columns, "candidates", "")
    for name in _NETWORKS.value:
        for share in map(float, _SHARES.value):
            for resources in (("parameters",), ("multiply_adds",), ("parameters", "multiply_adds")):
                asked = dict.fromkeys(resources, share)
                cells = [name, ", ".join(f"{key} {value:g}" for key, value in asked.items())]
                record.row(*cells, *_row(name, asked, images, labels))
    record.keep()


if __name__ == "__main__":
    app.run(main)
