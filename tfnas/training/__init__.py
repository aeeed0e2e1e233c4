"""Training under any tf.distribute strategy.

collapse_guard.py     stops or warns if a search drops everything, or does not move
distribution.py       the strategy, the processes of a cluster, and stages that run in all of them
distillation.py       the loss of a network that also learns from a teacher
loop.py               the training loop, which can be resumed at any step
preflight.py          checks before a training: memory, disk space, data, time of a step
best_cut.py           the best of a cut as it is, with its own statistics, and refitted
schedules.py          learning rates and optimizers as a config has them
building.py           the task of a config, and its plain supernet, with new or trained weights
networks.py           shared by search and retrain: networks, warm-up, batches
rivals.py             networks that other importances give within the same bounds, at once or trained as long
trained_baselines.py  of the published search: networks of the same size, trained equally long, without a posterior
"""
