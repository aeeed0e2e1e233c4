"""The published search on CIFAR-10: the paper's use of the images and ranking, without retraining."""

from tfnas.config import load_file


def get_config():
    """All but the network, its ell2 and its training."""
    config = load_file("cifar10.py", beside=__file__)
    config.data.update(train="train[:45000]", validation="train[45000:]", cutout=16)
    config.sample.update(num_candidates=1500, rank_by="accuracy")
    config.retrain.epochs = 0
    return config
