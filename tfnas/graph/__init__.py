"""A Keras model as a graph of operations, and what an architecture makes of it.

models.py     models of any kind as functional ones
tracing/      composite layers as what they call
parts.py      the nodes of a model; nested models and composite layers, and the calls that they consist of
channels.py   how channels flow through the graph: sources, constants, what is still read
statistics.py moving statistics of batch normalizations
costs.py      parameters and multiply-adds of an architecture
folding.py    the constants that dropped operations leave
partition.py  which channels exist or vanish as one
units.py      channels that exist or vanish as one, and the costs of a network of some of them in closed form
pins.py       what can be removed of a network at most, and the layers that keep whole streams
latencies.py  seconds of networks and of layers on a device, as a cost in closed form
"""
