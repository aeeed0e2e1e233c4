"""The regularizers of the ELBO, in float32, and the only division by N (method.md, section 2).

There are two priors on the gates. `regularizer` has the published one, of eq. 15. `lagrangian` has that of the recipe
'target': a channel of cost c is kept with the prior log odds -N lambda c, where lambda is the Lagrange multiplier of a
bound on the expected cost. `next_multiplier` adjusts it until the posterior's expected cost is the requested one
(docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp


def weight_term(drop_logits: tf.Tensor, squared_norms: tf.Tensor) -> tf.Tensor:
    """sum_k (1 - p_k) ||m_k||^2, eq. 15's spike-and-slab weight term without its factor ell2 / 2N.

    Args:
        drop_logits: logit of p per input channel, float32, shape (K,).
        squared_norms: ||m_k||^2 per input channel, float32, shape (K,).

    Returns:
        float32 scalar.
    """
    return tf.reduce_sum(tf.sigmoid(-drop_logits) * squared_norms)


def negative_entropy(drop_logits: tf.Tensor) -> tf.Tensor:
    """sum_k p log p + (1 - p) log(1 - p), both terms; float32 scalar from logits of shape (K,)."""
    return -tf.reduce_sum(tfp.distributions.Bernoulli(logits=drop_logits).entropy())


def cost_factors(num_channels: Sequence[int], norms: Sequence[float], costs: Sequence[float]) -> tuple[float, ...]:
    """Each layer's factor of ell2 under which a channel is pressed in proportion to what it costs.

    Eq. 15 has a length scale for every layer and kernel size. Here factor_l = a cost_l / E||m_k||^2_l, so that the
    expected weight term of every channel is a x its cost at an initialization of unit gain; `a` is such that the sum
    of these terms over all channels is what it is with a factor of 1 everywhere.

    Args:
        num_channels: K of each layer.
        norms: E||m_k||^2 of one input channel at that initialization; 0 for a layer without a kernel: its factor is 1.
        costs: of one input channel, in any unit; 0 for a layer without a kernel.

    Returns:
        One factor per layer.
    """
    channels, norm, cost = (np.asarray(values, np.float64) for values in (num_channels, norms, costs))
    if not norm.any():
        return (1.0,) * len(norm)
    scale = (channels @ norm) / (channels @ cost)
    return tuple(np.divide(scale * cost, norm, out=np.ones_like(norm), where=norm > 0).tolist())


def regularizer(
    gates: Sequence[tuple[tf.Tensor, tf.Tensor]],
    ell2: float,
    num_examples: float,
    factors: Sequence[float] = (),
    correlated: bool = True,
) -> tf.Tensor:
    """(ell2 / 2 x weight terms + negative entropies) / N, to be added to the mean negative log likelihood.

    Args:
        gates: (drop logits, squared norms), each per input channel, of every gated layer.
        ell2: squared prior length scale.
        num_examples: N, training examples seen as distinct.
        factors: of ell2, one per gated layer (`cost_factors`); empty: 1 for all.
        correlated: False: the weight term is a plain L2, sum_k ||m_k||^2, whatever the gates' probabilities are.

    Returns:
        float32 scalar.
    """
    terms = [weight_term(logits, norms) if correlated else tf.reduce_sum(norms) for logits, norms in gates]
    if factors:
        terms = [factor * term for factor, term in zip(factors, terms, strict=True)]
    weights = tf.add_n(terms)
    entropies = tf.add_n([negative_entropy(logits) for logits, _ in gates])
    return (0.5 * ell2 * weights + entropies) / num_examples


INITIAL_MULTIPLIER = 0.5
_MULTIPLIERS = (1e-3, 50.0)  # bounds of the multiplier
_GAIN = 0.05  # largest change of the multiplier's logarithm in a step
_FALLING = 0.7  # share of the steps over which the scheduled share falls to the target
_DECAY = 0.9  # of the moving average from which the slope of the share is estimated
_HORIZON = 50  # steps by which the share is extrapolated, because the gates respond to the multiplier with delay


def expected_share(drop_logits: Sequence[tf.Tensor], costs: Sequence[float], ungated: float) -> tf.Tensor:
    """Expected cost as a share of the full network's: ungated + sum over channels of (1 - p) cost.

    Args:
        drop_logits: logit of p per input channel, float32, shape (K,), of every gated layer.
        costs: of one input channel of each of these layers, as a share of the full network's.
        ungated: share of everything without a gate.

    Returns:
        float32 scalar.
    """
    terms = [cost * tf.reduce_sum(tf.sigmoid(-logits)) for logits, cost in zip(drop_logits, costs, strict=True)]
    return ungated + tf.add_n(terms)


def lagrangian(
    drop_logits: Sequence[tf.Tensor], cost: tf.Tensor, multiplier: tf.Tensor, num_examples: float
) -> tf.Tensor:
    """multiplier x cost + negative entropies / N, to be added to the mean negative log likelihood.

    Up to a constant this is KL(q || prior) / N for the prior that keeps a channel of cost c with log odds
    -N x multiplier x c; with the likelihood it is the Lagrangian of the ELBO under a bound on the expected cost.

    Args:
        drop_logits: as for `expected_share`.
        cost: expected, of the gated channels, float32 scalar.
        multiplier: lambda, float32 scalar.
        num_examples: N, training examples seen as distinct.

    Returns:
        float32 scalar.
    """
    entropies = tf.add_n([negative_entropy(logits) for logits in drop_logits])
    return multiplier * cost + entropies / num_examples


def scheduled_share(target: float, step: tf.Tensor, steps: int) -> tf.Tensor:
    """Scheduled `expected_share` after `step` of `steps`: falls geometrically from 1 to `target` in 70 % of them."""
    return target ** tf.minimum(1.0, tf.cast(step, tf.float32) / (_FALLING * steps))


def moving_average(average: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Moving average of the expected share, updated with this step's."""
    return _DECAY * average + (1 - _DECAY) * share


def next_multiplier(multiplier: tf.Tensor, share: tf.Tensor, average: tf.Tensor, scheduled: tf.Tensor) -> tf.Tensor:
    """The multiplier after a step: up by at most 5 % if the share is going to be above the scheduled one, else down.

    Args:
        multiplier: before the step, float32 scalar.
        share: expected share of the full network's cost.
        average: `moving_average`, with this share; it lags by 9 steps behind a share that changes linearly.
        scheduled: `scheduled_share` of this step.
    """
    slope = (share - average) * (1 - _DECAY) / _DECAY
    error = (share + _HORIZON * slope) / scheduled - 1.0
    return tf.clip_by_value(multiplier * tf.exp(_GAIN * tf.clip_by_value(error, -1.0, 1.0)), *_MULTIPLIERS)
