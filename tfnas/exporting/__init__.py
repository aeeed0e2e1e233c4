"""Exports a trained network to files for serving.

conversion.py    writes LiteRT, ONNX and OpenVINO files and scores each in its own runtime
savedmodel.py    writes the SavedModel: raw inputs or encoded images in, the task's answers out
verification.py  reloads a SavedModel in a process without Keras and compares its predictions
warmup.py        warm-up requests, which TensorFlow Serving runs before it accepts clients
"""
