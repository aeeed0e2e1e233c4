"""The run as a Kubeflow or Vertex AI pipeline: docs/pipelines.md."""

from tfnas.common import installation
from tfnas.common.errors import exit_on_error

with exit_on_error("pipelines"):  # here, because the modules import kfp before any function of theirs runs
    installation.require("kfp", ["kfp"], "the pipeline")
