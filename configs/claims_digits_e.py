"""The paper's claims of a network (benchmarks/claims) for SupNet-E, reduced, on the digits.

.venv/bin/python -m benchmarks.claims --config=configs/claims_digits_e.py --workdir=runs/claims_digits_e
    --claims=table3,figure1,table7,figure2 --export=docs/results/claims/digits_e
"""

from tfnas.config import load_file


def get_config():
    """Settings of the study."""
    config = load_file("base/digits.py", beside=__file__)
    config.supernet.update(name="enas", stem_width=0)
    config.search.update(epochs=40, ell2=20.0, gate_learning_rate=10.0)
    config.sample.update(num_candidates=200, num_random=60)
    config.retrain.update(epochs=40, learning_rate=0.1, weight_decay=5e-4)
    return config
