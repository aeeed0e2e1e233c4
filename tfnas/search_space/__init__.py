"""What is searched, as plain records. No TensorFlow.

architecture.py  Architecture: the input channels that each gated layer keeps; JSON
posterior.py     Posterior: independent Bernoulli gates; sample, log_prob, entropy, tilt; JSON
"""
