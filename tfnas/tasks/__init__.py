"""What a task means: its loss, its metrics, the form of its targets and what its networks answer.

facts.py     names, directions and forms of a task's metrics, and what a run of it may ask for. No TensorFlow
functions.py losses and metrics that are the user's own functions
columns.py   metrics of networks over all examples of a split
meanings.py  one class for each task: losses, metrics, targets, heads and answers
"""
