"""A user's input: examples in any form, a model with or without a loss, weights that are trained or not.

examples.py    training examples as endless batches, in an order that a resumed training repeats
compiling.py   losses, metrics and optimizer: the model's own, or by outputs and labels
trained.py     whether weights are trained, by a permutation test
"""
