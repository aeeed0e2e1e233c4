"""The paper's claims (benchmarks/claims) on the digits: half an hour on two cores.

.venv/bin/python -m benchmarks.claims --config=configs/claims_digits.py --workdir=runs/claims_digits
    --export=docs/results/claims/digits
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, Tune, to_config_dict


def get_config():
    """Settings of the study."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(
                recipe="paper", epochs=40, batch_size=50, learning_rate=0.1, ell2=160.0, gate_learning_rate=10.0
            ),
            sample=Sample(num_candidates=1500, num_random=200),
            retrain=Retrain(epochs=40, batch_size=50, learning_rate=0.1, weight_decay=5e-4),
            tune=Tune(ell2=(20.0, 40.0, 80.0, 160.0)),
        )
    )
