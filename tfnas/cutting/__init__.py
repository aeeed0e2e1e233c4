"""The physically smaller model.

activations.py    outputs of a network's nodes on all examples, in temporary files for as long as they are needed
ridge.py          ridge regression towards given weights, from sums over rows
refit.py          refits the layers of a network that was cut to what those of the full network give
subnets.py        subnet() cuts dropped channels out; describe() and rebuild() go through architecture.json
latency_bound.py  finds the bound on the predicted latency under which networks are as fast as asked
"""
