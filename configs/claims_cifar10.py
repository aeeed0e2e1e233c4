"""The paper's claims (benchmarks/claims) on CIFAR-10 at 16 x 16: an hour and more on two cores.

    .venv/bin/python -m benchmarks.claims --config=configs/claims_cifar10.py --workdir=runs/claims_cifar10
        --export=docs/results/claims/cifar10 --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, Tune, to_config_dict


def get_config():
    """Settings of the study."""
    return to_config_dict(
        Config(
            data=Data(
                name="cifar10",
                train="train[:10000]",
                validation="train[48000:]",
                test="test[:5000]",  # every candidate is evaluated on it
                image_size=16,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.247, 0.2435, 0.2616),
                pad_crop=2,
                flip=True,
            ),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(
                recipe="paper", epochs=16, batch_size=100, learning_rate=0.1, ell2=250.0, gate_learning_rate=5.0
            ),
            sample=Sample(num_candidates=120, num_random=40),
            retrain=Retrain(epochs=24, batch_size=100, learning_rate=0.1, weight_decay=5e-4),
            tune=Tune(ell2=(50.0, 100.0, 175.0, 250.0)),
        )
    )
