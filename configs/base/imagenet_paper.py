"""The published search on ImageNet: the paper's use of the images and ranking, without retraining."""

from tfnas.config import Config, Data, Retrain, Sample, Search, to_config_dict


def get_config():
    """All but the network, its ell2, its epochs and its batches."""
    return to_config_dict(
        Config(
            data=Data(
                name="imagenet2012",
                train="train[:1231167]",
                validation="train[1231167:]",
                test="validation",
                image_size=224,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                random_resized_crop=True,
                flip=True,
            ),
            search=Search(schedule="steps", learning_rate=0.1, example_multiplier=1.0),
            sample=Sample(num_candidates=1500, rank_by="accuracy", batch_size=250),
            retrain=Retrain(epochs=0, weight_decay=1e-3),
        )
    )
