"""The demo: scikit-learn's bundled digits (8 x 8, 1,797 images), minutes on two cores.

    tfnas run --config=configs/digits.py --workdir=runs/digits

It asks for a quarter of the parameters and 35 % of the multiply-adds (docs/choosing.md). Other importances
trained for comparison (`--config.retrain.baselines=norm,curvature`) are off, because they double its time.
"""

from tfnas.config import load_file


def get_config():
    """Settings of the demo."""
    config = load_file("base/digits.py", beside=__file__)
    config.supernet.update(width=24)
    config.search.update(epochs=30, importance="gates", parameters=0.25, multiply_adds=0.35, latency_device="litert")
    # Of 318 images, all of which a candidate is evaluated on in a moment.
    config.sample.update(num_candidates=500, num_random=100, finalists=0)
    config.retrain.update(epochs=50)
    config.evaluate.update(threshold=0.9, max_drop=0.05, max_parameters=0.9)
    return config
