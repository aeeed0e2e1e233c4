"""The contest of ways to a small network (benchmarks/contest.py) on CIFAR-10 at 32 x 32, at twice the width.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_32.py --workdir=runs/contest_32
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Those at 16 x 16, with images of their full size and twice the channels."""
    config = load_file("contest_16.py", beside=__file__)
    config.data.update(validation="train[45000:]", image_size=0, pad_crop=4)
    config.supernet.width = 16
    return config
