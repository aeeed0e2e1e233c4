"""CIFAR-10 for two cores: 10,000 training images at 16 x 16, SupNet-M at width 8 with one block a stage."""

from tfnas.config import load_file


def get_config():
    """All but the epochs, the bounds or ell2, and the candidates."""
    config = load_file("cifar10.py", beside=__file__)
    config.data.update(train="train[:10000]", validation="train[48000:]", image_size=16, pad_crop=2)
    config.supernet.update(width=8, num_blocks=1, stem_width=16)
    config.search.update(batch_size=100, learning_rate=0.1)
    config.retrain.batch_size = 100
    return config
