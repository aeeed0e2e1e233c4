"""The contest of ways to a small network (benchmarks/contest.py) on CIFAR-10 at 16 x 16, in 24 epochs on two cores.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_16.py --workdir=runs/contest_16
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Settings of a few minutes a run."""
    config = load_file("base/cifar10_small.py", beside=__file__)
    config.data.validation = "train[40000:]"
    config.search.epochs = 6
    config.sample.update(num_candidates=40, num_random=10, num_tested=5)
    config.retrain.update(epochs=18, baseline=False)
    return config
