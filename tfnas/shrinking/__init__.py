"""One call: a Keras model and its data, and what to expect of a smaller one.

tables.py    tables of records, as text for a terminal and as HTML for a notebook
preview.py   `tfnas.preview`: which sizes are possible and what they may cost, without any training
"""
