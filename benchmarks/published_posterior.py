"""Evaluates the published posterior of DenseNet-121 on ImageNet, without training.

    .venv/bin/python benchmarks/published_posterior.py [--samples=1500]

Loads the drop probabilities of the released experiment (tests/search_space) into this DenseNet-121 and prints,
for the samples drawn, mean and standard deviation of what a subnet costs and of Table 7's two proportions.
"""

import pathlib

import numpy as np
from absl import app, flags

import tfnas
from tfnas import supernets

_FILE = pathlib.Path(__file__).parents[1] / "tests" / "search_space" / "pgnas_densenet121_imagenet_posterior.json"


def published():
    """DenseNet-121 with gates, and the released posterior over them."""
    supernet = tfnas.gate(supernets.densenet121(), ell2=200, num_examples=1.2e6)
    return supernet, tfnas.Posterior.from_reference(_FILE.read_text(), supernet.posterior())


def main(_):
    """Prints the table."""
    supernet, posterior = published()
    full = tfnas.cost(supernet.graph)
    rows: dict[str, list[float]] = {}
    for architecture in posterior.sample(flags.FLAGS.samples, seed=0):
        price = tfnas.cost(supernet.graph, architecture)
        channels, operations = supernet.graph.flow(architecture).shares_read(architecture)
        kernels = sum(int(architecture[g.name].sum()) * g.parameters_per_channel for g in posterior.layers)
        for name, value in {
            "weights kept in the gated convolutions, M": kernels / 1e6,
            "parameters of the subnet, M": price.parameters / 1e6,
            "multiply-adds of the subnet, M": price.multiply_adds / 1e6,
            "share of gated channels dropped": 1 - channels,
            "share of operations dropped (all channels of one source in one convolution)": 1 - operations,
        }.items():
            rows.setdefault(name, []).append(value)
    print(
        f"Expected weights kept in the gated convolutions: {posterior.expected_parameters() / 1e6:.3f} M of "
        f"{posterior.total_parameters() / 1e6:.3f} M. Full network: {full.parameters:,} parameters, "
        f"{full.multiply_adds / 1e6:,.0f} M multiply-adds at 224 x 224.\n"
    )
    print(f"| of {flags.FLAGS.samples:,} samples | mean | standard deviation |\n|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {np.mean(values):.4f} | {np.std(values):.4f} |")


if __name__ == "__main__":
    flags.DEFINE_integer("samples", 1500, "Candidates drawn.")
    app.run(main)
