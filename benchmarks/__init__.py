"""Measurements, one command each. Those that share code are modules: `.venv/bin/python -m benchmarks.NAME`.

With `--record=docs/results/records/NAME.json` most of them keep what they print, with the command, the commit, the
machine and the date (`records.Record`). Commit first: the tests refuse a record of code that is in no commit.
"""
