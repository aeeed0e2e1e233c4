"""Images, and examples of every kind that Keras takes.

inputs.py    arrays from NumPy pairs, tf.data, generators and dictionaries, in the order of the model's inputs
sources/     images as they lie on disk, in disjoint splits: TFDS, a folder, a user's function
pipeline.py  the input pipeline: sizes, augmentation, a resumable order
"""
