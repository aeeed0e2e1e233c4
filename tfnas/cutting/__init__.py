"""The physically smaller model.

subnets.py        subnet() cuts dropped channels out; describe() and rebuild() go through architecture.json
latency_bound.py  finds the bound on the predicted latency under which networks are as fast as asked
"""
