"""CIFAR-10 at 16 x 16 on two cores: 10,000 training images, SupNet-M at width 8 with one block a stage.

    tfnas run --config=configs/cifar10_small.py --workdir=runs/cifar10_small --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it. docs/results.md has times and accuracies.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of a small, honest run on real colour images."""
    return to_config_dict(
        Config(
            data=Data(
                name="cifar10",
                train="train[:10000]",
                validation="train[48000:]",
                image_size=16,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.247, 0.2435, 0.2616),
                pad_crop=2,
                flip=True,
            ),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(epochs=12, batch_size=100, learning_rate=0.1, parameters=0.5),
            sample=Sample(num_candidates=200, num_random=50),
            retrain=Retrain(epochs=28, batch_size=100),
        )
    )
