"""scikit-learn's digits for two cores: 1,000 training images of 8 x 8, SupNet-M at width 8 with one block a stage."""

from tfnas.config import Config, Data, Retrain, Search, Supernet, to_config_dict


def get_config():
    """All but the epochs, the bounds or ell2, and the candidates."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(batch_size=50, learning_rate=0.1),
            retrain=Retrain(batch_size=50),
        )
    )
