"""The demo: scikit-learn's bundled digits (8 x 8, 1,797 images), minutes on two cores.

    tfnas run --config=configs/digits.py --workdir=runs/digits

It asks for a quarter of the parameters (docs/choosing.md). The controls that are trained too
(`--config.retrain.controls=true`) are off, because they double its time.
"""

from tfnas.config import Config, Data, Evaluate, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of the demo."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(epochs=30, batch_size=50, learning_rate=0.1, parameters=0.25),
            sample=Sample(num_candidates=500, num_random=100),
            retrain=Retrain(epochs=50, batch_size=50, controls=False),
            evaluate=Evaluate(min_accuracy=0.9, max_accuracy_loss=0.05, max_parameters=0.9),
        )
    )
