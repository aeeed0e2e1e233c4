"""The search space, as plain records. No TensorFlow.

architecture.py    Architecture: what each gated layer, or each channel group, keeps; JSON
layer_gates.py     Gates, LayerGates: drop probabilities of one mask, and what a layer's input channels cost
bernoulli.py       Bernoulli: log_prob, entropy and what else both posteriors have
posterior.py       Posterior: the published one, gates of layers' input channels; sample, tilt; JSON
expectation.py     Expectation: the mean of a cost under independent units, and its gradient
closed_form.py     ClosedForm: a network's costs as a formula in the widths of its channel groups
tilting.py         tilts or shifts independent units so that their expected costs meet bounds
filling.py         keeps units in the order of their scores, for as long as every bound holds
unit_posterior.py  UnitPosterior: gates of channel units; candidates within bounds; JSON
scored.py          makes a posterior of what each unit is worth
"""
