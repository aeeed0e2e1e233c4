"""The training step of gated and plain networks on an accelerator that has JAX but no TensorFlow.

XLA compiles TensorFlow's program there as it is, so it is TensorFlow's own step that is timed. Where TensorFlow is:

    .venv/bin/python -m benchmarks.accelerator.lower --out=FOLDER [--width=32] [--num_blocks=1] [--precision=float32]

writes each variant's step (forward, objective, backward, optimizer, multipliers) as XLA's HLO, with the variables.
With jaxlib, here or anywhere (pip install jax, in an environment of its own):

    python benchmarks/accelerator/portable.py FOLDER/*.hlo

makes portable StableHLO of it. On the accelerator, with jax:

    python benchmarks/accelerator/timed.py FOLDER/*.stablehlo

compiles all and times them in turns. docs/results/step_cost.md has the figures.
"""
