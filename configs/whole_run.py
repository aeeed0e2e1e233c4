"""Search, ranking and retraining against training the full network as long (benchmarks/whole_run.py).

SupNet-M at width 32 on images of CIFAR-10 at 32 x 32, whose number the benchmark sets: too few to say anything about
accuracy.
"""

from tfnas.config import load_file


def get_config():
    """Settings of a quarter of an hour on two cores."""
    config = load_file("base/cifar10.py", beside=__file__)
    config.data.update(train="train[:2000]", validation="train[49800:]", test="test[:200]")
    config.supernet.update(width=32, num_blocks=1)
    config.search.update(epochs=8, multiply_adds=0.5, batch_size=100)
    config.sample.update(num_candidates=100, num_random=1)
    config.retrain.update(epochs=16, batch_size=100, baseline=False)
    return config
