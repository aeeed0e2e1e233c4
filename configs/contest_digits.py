"""The contest of ways to a small network (benchmarks/contest.py) on the bundled digits: whether it runs, in minutes.

    .venv/bin/python -m benchmarks.contest --config=configs/contest_digits.py --workdir=runs/contest_digits --seeds=0

Its accuracies say nothing: there are 400 test images, and all arms get nearly all of them right.
"""

from tfnas.config import load_file


def get_config():
    """Settings of a trial."""
    return load_file("base/digits.py", beside=__file__)
