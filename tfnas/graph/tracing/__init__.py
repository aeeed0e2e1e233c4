"""Composite layers as what they call.

records.py           what a call was given besides tensors of the graph
tensors.py           symbolic tensors of Keras with what TensorFlow's tensors have besides
tensorflow_calls.py  functions of TensorFlow as those of keras.ops
masks.py             masks that Keras passes on beside tensors
simpler.py           operations as the simpler ones that they consist of
emission.py          what a run of a composite layer has recorded, called again
recording.py         what a composite layer calls
shuffles.py          channel shuffles as one operation
"""

from tfnas.graph.tracing.emission import Made as Made
from tfnas.graph.tracing.masks import with_attention_mask as with_attention_mask
from tfnas.graph.tracing.recording import drops_at_random as drops_at_random
from tfnas.graph.tracing.recording import trace as trace
from tfnas.graph.tracing.records import UntraceableError as UntraceableError
from tfnas.graph.tracing.records import calls_before as calls_before
from tfnas.graph.tracing.records import with_numbers as with_numbers
from tfnas.graph.tracing.shuffles import with_shuffles as with_shuffles
from tfnas.graph.tracing.simpler import consists_of as consists_of
