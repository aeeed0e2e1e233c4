"""Serves an exported model over TensorFlow Serving's protocols.

versions.py  finds the newest version in a model's folder. No TensorFlow
servable.py  an exported model that answers requests, in JSON or in messages
server.py    the REST and gRPC server
"""
