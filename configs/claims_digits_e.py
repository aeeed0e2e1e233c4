"""The paper's claims of a network (benchmarks/claims) for SupNet-E, reduced, on the digits.

.venv/bin/python -m benchmarks.claims --config=configs/claims_digits_e.py --workdir=runs/claims_digits_e
    --claims=table3,figure1,table7,figure2 --export=docs/results/claims/digits_e
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of the study."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(name="enas", width=8, num_blocks=1),
            search=Search(
                recipe="paper", epochs=40, batch_size=50, learning_rate=0.1, ell2=20.0, gate_learning_rate=10.0
            ),
            sample=Sample(num_candidates=200, num_random=60),
            retrain=Retrain(epochs=40, batch_size=50, learning_rate=0.1, weight_decay=5e-4),
        )
    )
