"""What the server of processes.py imports once for all that it forks: nothing that defines flags or finds a device."""

import gc

import cheaper
import reloading
import scipy.stats  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorflow_probability  # noqa: F401

import tfnas.stages.check
import tfnas.stages.evaluate
import tfnas.stages.export
import tfnas.stages.preview
import tfnas.stages.report
import tfnas.stages.retrain
import tfnas.stages.sample
import tfnas.stages.search  # noqa: F401
from tfnas.graph import latencies
from tfnas.training import rivals

# No process that is forked looks through what all of them have, whose memory would be copied by that.
gc.collect()
gc.freeze()


def shorten():
    """Changes what `processes.py` says is not as by the console script, in this process, for good."""
    latencies._SECONDS, latencies._PASSES = 0.002, 2  # as conftest's short_turns
    reloading.here().start()
    cheaper.tracing().__enter__()
    cheaper.collection()
    rivals.AT_ONCE = ("curvature",)  # `training/test_rivals.py` has all
