"""The network and data of configs/cifar10_small.py with the published search.

    tfnas run --config=configs/cifar10_small_paper.py --workdir=runs/cifar10_small_paper --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it. docs/results/accuracy.md has accuracies.
"""

from tfnas.config import load_file


def get_config():
    """Settings of a small, honest run on real color images."""
    config = load_file("base/cifar10_small.py", beside=__file__)
    config.search.update(epochs=16, ell2=250.0, gate_learning_rate=5.0)
    config.sample.update(num_candidates=200, num_random=50)
    config.retrain.update(epochs=24, learning_rate=0.1, weight_decay=5e-4)
    return config
