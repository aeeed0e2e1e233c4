"""The regularizer of the published ELBO, in float32, and its division by N (method.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

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


def regularizer(
    gates: Sequence[tuple[tf.Tensor, tf.Tensor]],
    ell2: float,
    num_examples: float,
    correlated: bool = True,
) -> tf.Tensor:
    """(ell2 / 2 x weight terms + negative entropies) / N, to be added to the mean negative log likelihood.

    Args:
        gates: (drop logits, squared norms), each per input channel, of every gated layer.
        ell2: squared prior length scale.
        num_examples: N, training examples seen as distinct.
        correlated: False: the weight term is a plain L2, sum_k ||m_k||^2, whatever the gates' probabilities are.

    Returns:
        float32 scalar.
    """
    terms = [weight_term(logits, norms) if correlated else tf.reduce_sum(norms) for logits, norms in gates]
    weights = tf.add_n(terms)
    entropies = tf.add_n([negative_entropy(logits) for logits, _ in gates])
    return (0.5 * ell2 * weights + entropies) / num_examples
