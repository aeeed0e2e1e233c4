"""The supernet: a model whose channels can be dropped, trained together with their drop probabilities.

elbo.py           the ELBO: regularizers of weights and gates, the multiplier of a size bound, the division by N
gates.py          Gated, a Keras wrapper: relaxed gates in training, a hard mask otherwise
optimizers.py     GatedOptimizer: any Keras optimizer for the weights, one beside it for the gates
supernet.py       Supernet: the gated model, its training step, posterior() and set_architecture()
placement.py      gate(model) -> Supernet: which layers get gates
saving.py         load(path): reads `.keras` files in safe mode
recalibration.py  batch-normalization statistics of one architecture
sizes.py          UpdateCosts, the callback of a search with a target size; the size reached
"""
