"""The settings: `--config.SECTION.KEY` is KEY in SECTION.py, with its default, its meaning and its check."""
