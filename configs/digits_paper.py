"""The demo's network and data (configs/digits.py) with the published search.

    tfnas run --config=configs/digits_paper.py --workdir=runs/digits_paper

ell2 and the learning rate are far above the paper's because the run is short: see docs/choosing.md. Networks
trained for comparison (`--config.retrain.baselines=fixed_drop,single_path,magnitude_pruning`) are off, because they
double its time.
"""

from tfnas.config import load_file


def get_config():
    """Settings of the demo."""
    config = load_file("base/digits.py", beside=__file__)
    config.search.update(epochs=40, ell2=160.0, gate_learning_rate=10.0)
    config.sample.update(num_candidates=500, num_random=100)
    config.retrain.update(epochs=40, learning_rate=0.1, weight_decay=5e-4)
    config.evaluate.update(threshold=0.9, max_drop=0.05, max_parameters=0.9)
    config.tune.ell2 = (20.0, 40.0, 80.0, 160.0)
    return config
