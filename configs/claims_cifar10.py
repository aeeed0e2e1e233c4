"""The paper's claims (benchmarks/claims) on CIFAR-10 at 16 x 16: an hour and more on two cores.

    .venv/bin/python -m benchmarks.claims --config=configs/claims_cifar10.py --workdir=runs/claims_cifar10
        --export=docs/results/claims/cifar10 --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Those of cifar10_small_paper.py, with what the claims need."""
    config = load_file("cifar10_small_paper.py", beside=__file__)
    config.data.test = "test[:5000]"  # every candidate is evaluated on it
    config.sample.update(num_candidates=120, num_random=40)
    config.tune.ell2 = (50.0, 100.0, 175.0, 250.0)
    return config
