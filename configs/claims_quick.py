"""The paper's claims (benchmarks/claims) on the digits, in minutes: whether all of it runs, not what holds.

make claims-quick
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, Tune, to_config_dict


def get_config():
    """Settings of a run that continuous integration waits for."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=4, num_blocks=1, stem_width=8),
            search=Search(
                recipe="paper", epochs=12, batch_size=50, learning_rate=0.1, ell2=160.0, gate_learning_rate=10.0
            ),
            sample=Sample(num_candidates=60, num_random=30),
            retrain=Retrain(epochs=8, batch_size=50, learning_rate=0.1, weight_decay=5e-4),
            tune=Tune(ell2=(20.0, 80.0, 160.0)),
        )
    )
