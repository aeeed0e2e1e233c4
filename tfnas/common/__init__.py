"""Helpers that are independent of networks. No TensorFlow.

errors.py          UserError, and one-line reports of user errors
installation.py    the packages that tfnas needs, Keras's backend, and extras
digests.py         SHA-256 digests of files and values
atomic.py          atomic file writes
locks.py           file locks of the operating system
markup.py          pieces of an HTML page: templates, tables, drawings as SVG
templates/         the macros that pages import
terminal.py        the console, and a quiet import of TensorFlow
resources.py       what a network costs: parameters, multiply-adds, latency
schema.py          reads JSON into the records that its writer filled, each field checked
statistics.py      confidence intervals and tests for rankings and predictions
user_functions.py  finds the user's own functions, named 'package.module:function'
"""
