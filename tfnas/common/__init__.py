"""What every folder uses and nothing here knows of networks. No TensorFlow.

errors.py          UserError, and how a user's mistake becomes one line
digests.py         SHA-256 digests of files and values
atomic.py          writes files that others see whole or not at all
locks.py           file locks of the operating system
markup.py          pieces of an HTML page: templates, tables, drawings as SVG
templates/         the macros that pages import
terminal.py        the console, and TensorFlow started without its greeting
schema.py          reads JSON and checks it against the schema that its writer uses
statistics.py      confidence intervals and tests for rankings and predictions
user_functions.py  finds the user's own functions, named 'package.module:function'
"""
