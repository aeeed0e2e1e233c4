"""The search space, as plain records. No TensorFlow.

architecture.py  Architecture: the input channels that each gated layer keeps; JSON
layer_gates.py   LayerGates: drop probabilities of one layer's input channels, and what the channels cost
posterior.py     Posterior: independent Bernoulli gates; sample, log_prob, entropy, tilt; JSON
"""
