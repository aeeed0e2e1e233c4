"""What takes much of the time that a graph is traced in and no test looks at, left out."""

import contextlib
import gc
import sys
from unittest import mock


def tracing():
    """A context in which operations of graphs do not each note the Python stack that they are made by.

    TensorFlow walks all of it for every operation, under pytest a hundred frames and more, to name lines in the errors
    of a graph that runs. In it all operations have the stack of this call. Nothing where TensorFlow is not loaded.
    """
    if "tensorflow" not in sys.modules:
        return contextlib.nullcontext()
    from tensorflow.python.util import tf_stack

    stack = tf_stack.extract_stack()
    return mock.patch.object(tf_stack, "extract_stack", lambda stacklevel=1: stack)


def collection():
    """Has Python look for cycles after 20,000 more objects and not after 700, for good.

    Tracing makes objects by the hundred thousand, nearly all of which are kept as long as their graph.
    """
    gc.set_threshold(20_000, 10, 10)
