"""Data: images for the stages, and examples in every form that Keras accepts.

inputs.py    examples from NumPy arrays, tf.data, generators and dictionaries, in the order of the model's inputs
sources/     raw images in disjoint splits: TFDS, a folder, a user's function
pipeline.py  the input pipeline: resizing, augmentation, a resumable order
"""
