"""Ranking: candidates of a posterior and their evaluation on held-out data.

packing.py                  all arrays that a program is given for one architecture, in two tensors
compiled_network.py         the network as steps that compute any architecture: its units and how they are joined
evaluation_log.py           a file of each example's loss and accuracy by architecture, so that none is recomputed
losses.py                   the compiled loss, and metrics, of every single example
racing.py                   drops candidates that cannot win, with a guarantee for the winner
reference_architectures.py  of the published search: random and pruned architectures of a size, single paths
reference_units.py          of channel units: random architectures within bounds
recalibration.py            batch-normalization statistics of one architecture
engine.py                   evaluates any architecture with programs compiled once
ranking.py                  rank(): many candidates, raced on the same examples
contests.py                 the contests of a run: the posterior's candidates, random ones, and those at budgets
fresh.py                    what winners are worth on examples that no race has used; means over candidates
"""
