"""CIFAR as published comparisons of pruning train on it: 200 epochs at batch 128, rate 0.1, L2 penalty 5e-4."""

from tfnas.config import load_file


def get_config():
    """All but the images' names, the network and its bounds; a quarter of the epochs is the search."""
    config = load_file("cifar10.py", beside=__file__)
    config.data.update(train="train[:45000]", validation="train[45000:]")
    # Decoupled, under momentum 0.9: ten times the penalty of the published runs.
    config.search.update(epochs=50, batch_size=128, learning_rate=0.1, weight_decay=5e-3)
    config.sample.num_candidates = 500
    config.retrain.update(epochs=150, batch_size=128, weight_decay=5e-3, baselines=("norm", "scale"))
    return config
