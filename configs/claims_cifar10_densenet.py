"""The paper's claims of a network (benchmarks/claims) for DenseNet-121, reduced, on CIFAR-10 at 32 x 32.

    .venv/bin/python -m benchmarks.claims --config=configs/claims_cifar10_densenet.py
        --workdir=runs/claims_cifar10_densenet --claims=table3,figure1,table7,figure2
        --export=docs/results/claims/cifar10_densenet --config.data.data_dir=DIR

DIR (or TFDS_DATA_DIR) holds cifar10 as tensorflow-datasets prepares it.
"""

from tfnas.config import load_file


def get_config():
    """Settings of the study."""
    config = load_file("base/cifar10.py", beside=__file__)
    config.data.update(train="train[:5000]", validation="train[48000:]")
    config.supernet.update(name="densenet121", width=8, num_blocks=3)
    config.search.update(epochs=20, batch_size=50, learning_rate=0.1, ell2=60.0, gate_learning_rate=5.0)
    config.sample.update(num_candidates=200, num_random=60)
    config.retrain.update(epochs=20, batch_size=50, learning_rate=0.1, weight_decay=5e-4)
    return config
