"""Stages of a run, each one function `run(config, workdir)`; they talk through files, never import each other."""
