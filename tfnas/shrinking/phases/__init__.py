"""The phases of a shrinking, each of which leaves its result in the working directory.

keeping.py      results under a key of all that they depend on
job.py          what all phases share
fitting.py      Keras's `fit` with checkpoints and a progress line
preparing.py    what can go, and whether the weights are trained
searching.py    gates, their training, and the architectures that are chosen
retraining.py   networks are cut out, trained further, and measured
"""
