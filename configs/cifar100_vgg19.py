"""VGG-19 on CIFAR-100 at 8.9 times fewer multiply-adds: 20.1 M parameters and 398.2 M multiply-adds in full.

    tfnas run --config=configs/cifar100_vgg19.py --workdir=runs/vgg19 --config.data.data_dir=DIR

Never run in full by this project. Published at this cost: 70.39 % test accuracy (DepGraph, arXiv 2301.12900), by the
best epoch on test. The protocol here is that of configs/cifar10_resnet56.py.
"""

from tfnas.config import load_file


def get_config():
    """Settings of the published comparisons, but for what is held out."""
    config = load_file("base/cifar_testbed.py", beside=__file__)
    config.data.update(name="cifar100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    config.supernet.update(name="vgg19", width=64)
    config.search.update(parameters=0.25, multiply_adds=0.112)
    return config
