"""The stages of a run, each one function `run(config, workdir)`. They talk through files and never import each other.

handover.py  packs a stage's working directory from what earlier stages handed over, for runs that travel. No TensorFlow
check.py     `tfnas check`: what a run will take, measured before it is started
preview.py   `tfnas preview`: how the images look after augmentation
search.py    trains the supernet and its posterior
sample.py    samples candidates, ranks them on validation data, chooses the architecture
retrain.py   cuts the architecture out, trains it, and trains the baselines
evaluate.py  blesses the network, or not
export.py    writes the SavedModel and other formats, and verifies them
report.py    writes report.html
"""
