"""From a trained network to files that are served.

conversion.py    writes LiteRT, ONNX and OpenVINO files and scores each in its own runtime
savedmodel.py    writes the SavedModel: raw or encoded images in, named probabilities out
verification.py  reloads a SavedModel in a process without Keras and compares its answers
warmup.py        requests that TensorFlow Serving sends itself before it takes a user's
"""
