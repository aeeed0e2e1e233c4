"""The contest of ways to a small network (benchmarks/contest.py) on CIFAR-10 at 32 x 32, at twice the width.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_32.py --workdir=runs/contest_32
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of whole images."""
    return to_config_dict(
        Config(
            data=Data(
                name="cifar10",
                train="train[:10000]",
                validation="train[45000:]",
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.247, 0.2435, 0.2616),
                pad_crop=4,
                flip=True,
            ),
            supernet=Supernet(width=16, num_blocks=1, stem_width=16),
            search=Search(epochs=6, batch_size=100, learning_rate=0.1),
            sample=Sample(num_candidates=40, num_random=10, num_tested=5),
            retrain=Retrain(epochs=18, batch_size=100, baseline=False, controls=False),
        )
    )
