"""Tasks: their losses and metrics, the form of their targets, and what their networks answer.

facts.py       names, directions and forms of a task's metrics, and what a run of it may ask for. No TensorFlow
network_inputs.py inputs of a network: one array of an example or several, images or values. No TensorFlow
functions.py   losses and metrics that are the user's own functions
columns.py     metrics of networks over all examples of a split
task.py        the base class of tasks
meanings.py    one class for each task: losses, metrics, targets, heads and answers
recognition.py the task of a network that was made for none, by its output and labels
"""
