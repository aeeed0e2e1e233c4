"""The contest of ways to a small network (benchmarks/contest.py) on 1,000 images of CIFAR-10, to convergence.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_converged.py --workdir=runs/contest_converged
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Those of contest_16.py, with a tenth of the images and 7.5 times the epochs."""
    config = load_file("contest_16.py", beside=__file__)
    config.data.train = "train[:1000]"
    config.search.epochs = 45
    config.retrain.epochs = 135
    return config
