"""CIFAR-10 as every run on it prepares the images: normalized, shifted and mirrored at random."""

from tfnas.config import Config, Data, to_config_dict


def get_config():
    """The data; which images are for what, and the run, are each config's own."""
    data = Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), pad_crop=4, flip=True)
    return to_config_dict(Config(data=data))
