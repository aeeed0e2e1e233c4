"""The demo's network and data (configs/digits.py) under the published recipe.

    tfnas run --config=configs/digits_paper.py --workdir=runs/digits_paper

ell2 and the learning rate are far above the paper's because the run is short: see docs/choosing.md. The controls that
are trained too (`--config.retrain.controls=true`) are off, because they double its time.
"""

from tfnas.config import Config, Data, Evaluate, Retrain, Sample, Search, Supernet, Tune, to_config_dict


def get_config():
    """Settings of the demo."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(
                recipe="paper", epochs=40, batch_size=50, learning_rate=0.1, ell2=160.0, gate_learning_rate=10.0
            ),
            sample=Sample(num_candidates=500, num_random=100),
            retrain=Retrain(epochs=40, batch_size=50, learning_rate=0.1, weight_decay=5e-4, controls=False),
            evaluate=Evaluate(min_accuracy=0.9, max_accuracy_loss=0.05, max_parameters=0.9),
            tune=Tune(ell2=(20.0, 40.0, 80.0, 160.0)),
        )
    )
