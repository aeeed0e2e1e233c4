"""A supernet of channel units: hard masks against the cut network, expected costs, training, saving, replicas."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from exactness import check_equal
from random_models import Builder

import tfnas
from tfnas.common.errors import UserError
from tfnas.gating.gates import hard_gates
from tfnas.search_space.architecture import Architecture
from tfnas.supernets import multi_branch_resnet

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def random_architecture(graph, rng):
    rates = rng.choice([0.0, 0.2, 0.6, 1.0], len(graph.groups))
    return Architecture({g.name: rng.random(g.size) < rate for g, rate in zip(graph.groups, rates, strict=True)})


def supernet_of(model, **options):
    return tfnas.gate(model, **{"parameters": 0.95, "steps": 100, "num_examples": 1000, **options})


def is_random(network):
    """Whether training draws numbers other than the gates'."""
    kinds = (L.Dropout, L.GaussianNoise, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D)
    return any(isinstance(layer, kinds) for layer in network.layers)


@pytest.mark.parametrize("seed", range(16))
def test_masks_the_cut_network_and_the_engine_agree_on_random_models(seed):
    rng = np.random.default_rng([seed, 5])
    model = Builder(seed).model()
    random_weights(model, rng)
    noise = "batch" if seed % 2 else "example"
    try:
        supernet = supernet_of(model, streams=seed % 3 == 0, noise=noise)
    except UserError as error:
        assert "no channels that may vanish" in str(error) or "out of reach" in str(error)
        return
    images = [rng.normal(size=(5, *i.shape[1:])).astype("f4") for i in model.inputs]
    given = images if len(images) > 1 else images[0]
    check_equal(supernet(given), model(given))
    for _ in range(4):
        architecture = random_architecture(supernet.graph, rng)
        supernet.set_architecture(architecture)
        assert supernet.architecture() == supernet.graph.closed(architecture)
        cut = tfnas.subnet(supernet, supernet.architecture())
        expected = cut(given)
        check_equal(supernet(given), expected)
        if not is_random(cut):
            before = supernet.get_weights()
            with hard_gates():
                trained = supernet.network(given, training=True)
            supernet.set_weights(before)
            check_equal(trained, cut(given, training=True))


def test_a_bound_on_the_latency_is_one_on_seconds_measured_layer_by_layer(tmp_path, rng):
    def device(network):
        return 1e-9 * tfnas.cost(network).multiply_adds + 1e-6

    model = multi_branch_resnet(4, 1, 5, (8, 8, 3))
    supernet = tfnas.gate(model, latency=0.5, parameters=0.8, steps=20, num_examples=100, device=device)
    assert set(supernet.bounds) == {"latency", "parameters"}
    full = supernet.form.full("latency")
    assert full == pytest.approx(device(model)) and supernet.bounds["latency"] == pytest.approx(full / 2)
    supernet.compile("sgd", LOSS)
    logs = supernet.fit(rng.normal(size=(8, 8, 8, 3)).astype("f4"), np.arange(8) % 5, verbose=0).history
    assert 0 < logs["latency"][0] <= 1
    supernet.save(tmp_path / "supernet.keras")
    again = tfnas.load(tmp_path / "supernet.keras")  # without measuring anything
    assert again.latencies == supernet.latencies
    for architecture in again.posterior().sample(5):
        assert again.posterior().cost_of(architecture, "latency") <= full / 2
    for wrong in (0, 1, 20):
        with pytest.raises(ValueError, match=r"latency must be a share in \(0, 1\)"):
            tfnas.gate(model, latency=wrong, steps=20, num_examples=100, device=device)
