"""One call: a Keras model and its data, and a smaller one or what to expect of it.

tables.py      tables of records, as text for a terminal and as HTML for a notebook
measuring.py   what networks are measured by, before and after
page.py        a network's report as an HTML page
result.py      what `tfnas.shrink` returns
plan.py        how epochs are used, and by which importance units are chosen
given/         what a user gives: examples, losses and optimizer, trained weights or not
phases/        search, cut and retraining, each with its result in the working directory
preview.py     `tfnas.preview`: which sizes are possible and what they may cost, without any training
max_drop.py    the smallest network that loses at most so much of a metric
shrink.py      `tfnas.shrink`
"""
