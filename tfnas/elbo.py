"""The two regularisers of the ELBO, in float32, and the only division by N (method.md, section 2)."""

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
    expected weight term of every channel is a x its cost at an initialisation of unit gain; `a` is such that the sum
    of these terms over all channels is what it is with a factor of 1 everywhere.

    Args:
        num_channels: K of each layer.
        norms: E||m_k||^2 of one input channel at that initialisation; 0 for a layer without a kernel: its factor is 1.
        costs: of one input channel, in any unit; 0 for a layer without a kernel.

    Returns:
        One factor per layer.
    """
    channels, norm, cost = (np.asarray(values, np.float64) for values in (num_channels, norms, costs))
    if not norm.any():
        return (1.0,) * len(norm)
    scale = (channels @ norm) / (channels @ cost)
    return tuple(np.divide(scale * cost, norm, out=np.ones_like(norm), where=norm > 0).tolist())


def regulariser(
    gates: Sequence[tuple[tf.Tensor, tf.Tensor]], ell2: float, num_examples: float, factors: Sequence[float] = ()
) -> tf.Tensor:
    """(ell2 / 2 x weight terms + negative entropies) / N, to be added to the mean negative log likelihood.

    Args:
        gates: (drop logits, squared norms), each per input channel, of every gated layer.
        ell2: squared prior length scale.
        num_examples: N, training examples seen as distinct.
        factors: of ell2, one per gated layer (`cost_factors`); empty: 1 for all.

    Returns:
        float32 scalar.
    """
    terms = [weight_term(logits, norms) for logits, norms in gates]
    if factors:
        terms = [factor * term for factor, term in zip(factors, terms, strict=True)]
    weights = tf.add_n(terms)
    entropies = tf.add_n([negative_entropy(logits) for logits, _ in gates])
    return (0.5 * ell2 * weights + entropies) / num_examples
