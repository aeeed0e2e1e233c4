"""Reloads an export without the process of its own that `exporting/verification.py` starts and TensorFlow's import.

`exporting/test_verification.py`, the whole run of `test_end_to_end.py` and a regression in `tasks/test_runs.py` have
that process.
"""

import contextlib
from unittest import mock

import numpy as np
import tensorflow as tf

from tfnas.exporting import verification


@contextlib.contextmanager
def in_this_process(path):
    """Stands for `verification._fresh_process`."""
    signatures = tf.saved_model.load(str(path)).signatures

    def ask(name, examples, wanted):
        encoded = name == "serve_bytes"
        alike = encoded or len({tuple(map(np.shape, one.values())) for one in examples}) == 1
        answers = []
        for some in [examples] if alike else [[one] for one in examples]:
            if encoded:
                given = {"image_bytes": [tf.io.encode_png(one["image"]).numpy() for one in some]}
            else:
                given = {key: np.stack([one[key] for one in some]) for key in some[0]}
            answers.append(signatures[name](**{key: tf.constant(values) for key, values in given.items()}))
        answer = {output: np.concatenate([one[output] for one in answers]) for output in answers[0]}
        names = answer["classes"][:, 0].astype(str) if "classes" in answer else [""] * len(examples)
        return {key: answer[key] for key in wanted}, list(names)

    yield ask


def here():
    """A context in which exports are reloaded by this process."""
    return mock.patch.object(verification, "_fresh_process", in_this_process)
