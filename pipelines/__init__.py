"""The run as a Kubeflow or Vertex AI pipeline: docs/pipelines.md."""
