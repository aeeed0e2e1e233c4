"""The paper's claims (benchmarks/claims) on the digits, in minutes: whether all of it runs, not what holds.

make claims-quick
"""

from tfnas.config import load_file


def get_config():
    """Those of claims_digits.py, for a smaller network and fewer epochs and candidates."""
    config = load_file("claims_digits.py", beside=__file__)
    config.supernet.update(width=4, stem_width=8)
    config.search.epochs = 6
    config.sample.update(num_candidates=24, num_random=12)
    config.retrain.epochs = 4
    config.tune.ell2 = (20.0, 80.0, 160.0)
    return config
