"""The stages of a run, each one function `run(config, workdir)`; they talk through files and never import each other."""
