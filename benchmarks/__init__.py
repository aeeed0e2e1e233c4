"""Measurements, one command each. Those that share code are modules: `.venv/bin/python -m benchmarks.NAME`."""
