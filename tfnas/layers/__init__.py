"""What Keras layers do with channels.

calls.py  how a layer was called in its model, so that it can be called so again
kinds.py  the kind of every Keras layer: what it does with channels, whether a gate may stand on it
"""
