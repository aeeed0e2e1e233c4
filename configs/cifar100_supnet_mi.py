"""The paper's SupNet-MI on CIFAR-100 (arXiv 1906.09557): 14.28 % test error with 46.4 M of 72.7 M.

    tfnas run --config=configs/cifar100_supnet_mi.py --workdir=runs/supnet_mi_100 --config.data.data_dir=DIR

As on CIFAR-10, but ell2 = 2,500 and 5,000 candidates. 1,800 epochs of 45,000 images: GPU days; never run in full by
this project. The paper does not say which images it ranks on; here they are the last 5,000 of the training split, so
N = 10 x 45,000. There is no retraining.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of the paper."""
    return to_config_dict(
        Config(
            data=Data(
                name="cifar100",
                train="train[:45000]",
                validation="train[45000:]",
                mean=(0.5071, 0.4865, 0.4409),
                std=(0.2673, 0.2564, 0.2762),
                pad_crop=4,
                flip=True,
                cutout=16,
            ),
            supernet=Supernet(width=160, num_blocks=4, stem_width=16),
            search=Search(recipe="paper", epochs=1800, batch_size=128, learning_rate=0.01, ell2=2500.0),
            sample=Sample(num_candidates=5000, rank_by="accuracy"),
            retrain=Retrain(epochs=0, baseline=True, baseline_learning_rate=0.01),
        )
    )
