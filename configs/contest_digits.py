"""The contest of ways to a small network (benchmarks/contest.py) on the bundled digits: whether it runs, in a minute.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_digits.py --workdir=runs/contest_digits --seeds=0

Its accuracies say nothing: there are 400 test images, and all arms get nearly all of them right.
"""

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def get_config():
    """Settings of a trial."""
    return to_config_dict(
        Config(
            data=Data(name="digits", train="train[:1000]", validation="train[1000:]", mean=(0.305,), std=(0.376,)),
            supernet=Supernet(width=8, num_blocks=1, stem_width=16),
            search=Search(epochs=8, batch_size=50, learning_rate=0.1),
            sample=Sample(num_candidates=50, num_random=10),
            retrain=Retrain(epochs=12, batch_size=50, baseline=False, controls=False),
        )
    )
