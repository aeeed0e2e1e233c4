"""CIFAR-10 at 16 x 16 on two cores: 10,000 training images, SupNet-M at width 8 with one block a stage.

    tfnas run --config=configs/cifar10_small.py --workdir=runs/cifar10_small --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Settings of a small, honest run on real color images."""
    config = load_file("base/cifar10_small.py", beside=__file__)
    config.search.update(epochs=12, parameters=0.5, multiply_adds=0.5)
    config.sample.update(num_candidates=200, num_random=50)
    config.retrain.epochs = 28
    return config
