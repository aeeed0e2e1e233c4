"""The supernet: a model whose channels can be dropped, trained together with their drop probabilities.

elbo.py           the regularizer of the published ELBO, and its division by N
gates.py          Gated, a Keras wrapper: relaxed gates in training, a hard mask otherwise
unit_gates.py     gates of channel units: one draw for all, and the layers that multiply by it
unit_placement.py where the gates of units stand, and the network with them
bounds.py         expected costs in closed form, and the multipliers that bring them to their bounds
optimizers.py     GatedOptimizer: any Keras optimizer for the weights, one beside it for the gates; MeanSquares
supernet.py       Supernet: the gated model and its training step; PublishedSupernet
importances.py    scores of channel units by several measures, which all lead to one posterior
unit_training.py  how such a supernet learns what units are worth: gates, curvature, a penalty, or plain training
unit_supernet.py  UnitSupernet: with gates of channel units, under bounds
placement.py      gate(model) -> Supernet: which layers get gates
saving.py         load(path): reads `.keras` files in safe mode
"""
