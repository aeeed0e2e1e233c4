"""Helpers that are independent of networks. No TensorFlow.

errors.py          UserError, and one-line reports of user errors
digests.py         SHA-256 digests of files and values
atomic.py          atomic file writes
locks.py           file locks of the operating system
markup.py          pieces of an HTML page: templates, tables, drawings as SVG
templates/         the macros that pages import
terminal.py        the console, and a quiet import of TensorFlow
schema.py          reads JSON and checks it against the schema that its writer uses
statistics.py      confidence intervals and tests for rankings and predictions
user_functions.py  finds the user's own functions, named 'package.module:function'
"""
