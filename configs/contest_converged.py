"""The contest of ways to a small network (benchmarks/contest.py) on 1,000 images of CIFAR-10, to convergence.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_converged.py --workdir=runs/contest_converged
        --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of a training that has nothing left to gain."""
    return to_config_dict(
        Config(
            data=Data(
                name="cifar10",
                train="train[:1000]",
                validation="train[40000:]",
                image_size=16,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.247, 0.2435, 0.2616),
                pad_crop=2,
                flip=True,
            ),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(epochs=45, batch_size=100, learning_rate=0.1),
            sample=Sample(num_candidates=40, num_random=10, num_tested=5),
            retrain=Retrain(epochs=135, batch_size=100, baseline=False, controls=False),
        )
    )
