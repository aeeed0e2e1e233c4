"""The contest of ways to a small network (benchmarks/contest.py) on CIFAR-10 at 16 x 16, a few minutes a run.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_16.py --workdir=runs/contest_16
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """The images, the full network and its weight decay; the arms have the rest."""
    config = load_file("base/cifar10_small.py", beside=__file__)
    config.data.validation = "train[40000:]"
    return config
