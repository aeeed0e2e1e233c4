"""TensorFlow started: what is asked of its devices. There is no GPU here, so they are made up."""

import types

import pytest
import tensorflow as tf

from tfnas.common import terminal


@pytest.mark.parametrize("in_use", [False, True])
def test_of_every_gpus_memory_only_what_is_needed_is_taken(monkeypatch, in_use):
    gpus, grown = [types.SimpleNamespace(name=f"GPU:{i}") for i in range(2)], []

    def physical(kind=None):
        return gpus if kind == "GPU" else []

    def logical(kind=None):
        assert [gpu for gpu, _ in grown] == gpus  # afterwards it is too late
        return gpus

    def grow(gpu, value):
        grown.append((gpu, value))
        if in_use:
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", physical)
    monkeypatch.setattr(tf.config, "list_logical_devices", logical)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    assert terminal.load_tensorflow() is tf
    assert grown == [(gpu, True) for gpu in gpus]
