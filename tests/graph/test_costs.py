"""What is measured of costs; what is counted is tested with the subnets that it is counted for."""

import types

import keras
import numpy as np
import pytest

import tfnas
from tfnas.common.errors import UserError
from tfnas.cutting import latencies


def network(size=6, **arguments):
    image = keras.Input((size, size, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(image)
    x = keras.layers.Conv2D(5, 3, name="a")(x)
    x = keras.layers.MaxPooling2D(2, name="pool")(x)
    x = keras.layers.DepthwiseConv2D(2, name="b")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(7, name="c")(x)
    model = keras.Model(image, keras.layers.Dense(3, name="classifier")(x))
    return tfnas.gate(model, ell2=1, num_examples=10, include=["a", "pool", "b", "c"], **arguments)


def test_layer_latency_is_the_median_less_the_calls_shared_out_to_channels_and_examples(monkeypatch):
    layers = [(1.0, 9.0, 2.0), (0.4, 0.3, 7.0), (30.0, 20.0, 10.0), (200.0, 200.0, 1.0)]
    call = (0.25, 8.0, 0.5)
    ticks = [0.0]
    for layer in layers:
        for duration in (*layer, *call):
            ticks += [ticks[-1], ticks[-1] + duration]
    clock = iter(ticks[1:])
    monkeypatch.setattr(latencies, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    seconds = tfnas.layer_latencies(network(), batch_size=8, repeats=3)
    expected = {"a": (2 - 0.5) / 4 / 8, "pool": 0.0, "b": (20 - 0.5) / 5 / 8, "c": (200 - 0.5) / 5 / 8}
    assert seconds == pytest.approx(expected, rel=1e-12) and list(seconds) == list(expected)
    assert next(clock, None) is None


def test_networks_are_timed_in_turns_so_that_a_busy_moment_is_all_networks(monkeypatch):
    # In each round three passes of one network, then three of the other; in the second the machine is busy.
    rounds = [
        ((1.0, 2.0, 3.0), (9.0, 4.0, 5.0)),
        ((8.0, 8.0, 7.0), (20.0, 15.0, 15.0)),
        ((3.0, 3.0, 1.0), (6.0, 6.0, 8.0)),
    ]
    ticks = [0.0]
    for durations in rounds:
        for duration in (duration for turn in durations for duration in turn):
            ticks += [ticks[-1], ticks[-1] + duration]
    clock = iter(ticks[1:])
    monkeypatch.setattr(latencies, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)]) for units in (2, 3)]
    seconds, spread = latencies.compared(models, rounds=3, repeats=3)
    # Medians of the turns: 2, 8, 3 and 5, 15, 6.
    assert seconds == [3.0, 6.0] and spread == 4.0
    assert next(clock, None) is None


def test_layers_are_timed_alone_on_their_own_inputs(monkeypatch):
    shapes = {}
    supernet = network()
    for name, layer in supernet.gated_layers.items():

        def call(inputs, name=name, inner=layer.layer.call):
            shapes[name] = (tuple(inputs.shape), inputs.dtype.name)
            return inner(inputs)

        monkeypatch.setattr(layer.layer, "call", call)
    seconds = tfnas.layer_latencies(supernet, batch_size=3, repeats=1)
    assert shapes == {
        "a": ((3, 6, 6, 4), "float32"),
        "pool": ((3, 4, 4, 5), "float32"),
        "b": ((3, 2, 2, 5), "float32"),
        "c": ((3, 5), "float32"),
    }
    assert all(0 <= value < 5 for value in seconds.values())
    posterior = supernet.posterior().with_latency(seconds)
    assert [g.latency_per_channel for g in posterior.layers] == list(seconds.values())


def test_a_layer_with_more_to_do_takes_longer():
    image = keras.Input((32, 32, 8))
    x = keras.layers.Conv2D(64, 1, name="stem")(image)
    x = keras.layers.Conv2D(64, 5, padding="same", name="large")(x)  # 25 x the multiply-adds of the next
    x = keras.layers.Conv2D(64, 1, name="small")(x)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    seconds = tfnas.layer_latencies(tfnas.gate(model, ell2=1, num_examples=10), batch_size=8, repeats=5)
    assert seconds["large"] > 2 * seconds["small"] >= 0


def test_layer_latencies_that_cannot_be_measured_are_refused():
    with pytest.raises(
        UserError, match="layer_latencies: layer 'a': an input of fixed size expected. Received: .None, None.; give"
    ):
        tfnas.layer_latencies(network(size=None))
    for wrong in ({"batch_size": 0}, {"repeats": 0}):
        ((name, _),) = wrong.items()
        with pytest.raises(UserError, match=f"layer_latencies: {name} must be at least 1. Received: 0"):
            tfnas.layer_latencies(network(), **wrong)


def test_half_precision_layers_are_timed_in_half_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    seconds = tfnas.layer_latencies(network(), batch_size=1, repeats=1)
    assert np.isfinite(list(seconds.values())).all()
