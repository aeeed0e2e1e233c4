"""Composite layers as what they call.

tensorflow_calls.py  functions of TensorFlow as those of keras.ops
emission.py          what a run of a composite layer has recorded, called again
recording.py         what a composite layer calls
shuffles.py          channel shuffles as one operation
"""

from tfnas.graph.tracing.emission import Made as Made
from tfnas.graph.tracing.emission import UntraceableError as UntraceableError
from tfnas.graph.tracing.recording import drops_at_random as drops_at_random
from tfnas.graph.tracing.recording import trace as trace
from tfnas.graph.tracing.shuffles import with_shuffles as with_shuffles
