"""The paper's claims (benchmarks/claims) on the digits: half an hour on two cores.

.venv/bin/python -m benchmarks.claims --config=configs/claims_digits.py --workdir=runs/claims_digits
    --export=docs/results/claims/digits
"""

from tfnas.config import load_file


def get_config():
    """Settings of the study."""
    config = load_file("base/digits.py", beside=__file__)
    config.search.update(epochs=40, ell2=160.0, gate_learning_rate=10.0)
    config.sample.update(num_candidates=1500, num_random=200)
    config.retrain.update(epochs=40, learning_rate=0.1, weight_decay=5e-4)
    config.tune.ell2 = (20.0, 40.0, 80.0, 160.0)
    return config
