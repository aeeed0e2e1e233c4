"""Training under any tf.distribute strategy.

collapse_guard.py     ends or warns of a search in which everything is dropped, or nothing moves
distribution.py       the strategy, the cluster's processes, and stages that all of them run
loop.py               the training loop, which stops and resumes at any step
preflight.py          what can be known before hours are spent: memory, disk, whole data, time of a step
schedules.py          learning rates and optimizers as a config has them
networks.py           what search and retrain share: networks, warm-up, batches
trained_baselines.py  networks of the same size, trained for as long, chosen without a posterior
"""
