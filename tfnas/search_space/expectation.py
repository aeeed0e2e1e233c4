"""Expectation: the mean of a cost under independent units, and its gradient, in closed form. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Two groups whose numbers of kept units are multiplied (the number of groups stands for 1), the smaller first, and the
# other groups of which none may be empty.
Monomial = tuple[int, int, frozenset[int]]

_TINY = 1e-200  # instead of a probability of 0, so that the product of the others is its quotient by it


class Expectation:
    """E[cost] for units that are kept independently, each with its own probability (method.md, section 9).

    The cost is a sum of c k_a k_b [every group of a set S keeps a unit], a and b outside S. Groups are independent,
    and with mu_g the sum of a group's keep probabilities q and z_g = prod(1 - q) the probability that it is empty,

        E[k_a k_b] = mu_a mu_b,   E[k_a^2] = mu_a^2 + sum q (1 - q),   E[every group of S keeps one] = prod (1 - z_g)

    A group that may not empty keeps one unit where it would keep none, which adds z_g to E[k] and to E[k^2]. Nothing is
    approximated: this is the mean cost of closed architectures.

    Attributes:
        coefficients: c of each monomial, float64, shape (M,).
        first, second: a and b of each, int, shape (M,); the number of groups G stands for a factor of 1.
        squares: whether a and b are one group, bool, shape (M,).
        sets: the different sets S as rows of 0 and 1, float64, shape (N, G).
        set_of: row of each monomial's S, int, shape (M,).
    """

    def __init__(self, monomials: Mapping[Monomial, float], sizes: np.ndarray, may_empty: np.ndarray):
        sets = {alive: i for i, alive in enumerate(dict.fromkeys(alive for _, _, alive in monomials))}
        self.coefficients = np.array([*monomials.values()], np.float64)
        self.first = np.array([a for a, _, _ in monomials], int)
        self.second = np.array([b for _, b, _ in monomials], int)
        self.set_of = np.array([sets[alive] for _, _, alive in monomials], int)
        self.sets = np.zeros((len(sets), len(sizes)))
        for alive, i in sets.items():
            self.sets[i, list(alive)] = 1.0
        self.squares = (self.first == self.second) & (self.first < len(sizes))
        self._sizes, self._starts = sizes, np.cumsum(sizes) - sizes
        self._held = (~may_empty).astype(np.float64)  # a group that may not empty

    def value(self, keep_probability: np.ndarray) -> float:
        """E[cost].

        Args:
            keep_probability: q of each unit, float64, shape (U,).
        """
        mean, square, alive = self._moments(keep_probability)
        return float(self.coefficients @ (self._factors(mean, square) * self._works(alive)[self.set_of]))

    def gradient(self, keep_probability: np.ndarray) -> np.ndarray:
        """dE[cost]/dq of each unit, float64, shape (U,); at least 0.

        Args:
            keep_probability: q of each unit, float64, shape (U,).
        """
        return self.value_and_gradient(keep_probability)[1]

    def value_and_gradient(self, keep_probability: np.ndarray) -> tuple[float, np.ndarray]:
        """E[cost] and its gradient."""
        q = np.asarray(keep_probability, np.float64)
        mean, square, alive = self._moments(q)
        works = self._works(alive)
        values = self._factors(mean, square)
        weights = self.coefficients * works[self.set_of]

        count = len(self._sizes)
        products, squares = ~self.squares, self.squares
        to_mean = np.bincount(self.first[products], (weights * mean[self.second])[products], count + 1)
        to_mean += np.bincount(self.second[products], (weights * mean[self.first])[products], count + 1)
        to_square = np.bincount(self.first[squares], weights[squares], count + 1)
        to_works = np.bincount(self.set_of, self.coefficients * values, len(works))
        to_alive = (to_works * works) @ self.sets / alive

        # By unit: d mu = 1, d(mu^2 + sum q (1 - q)) = 2 mu + 1 - 2 q, and dz = -(the others' prod(1 - q)).
        sums = np.add.reduceat(q, self._starts)
        spread = self._spread
        by_unit = spread(to_mean[:-1]) + spread(to_square[:-1]) * (2 * spread(sums) + 1 - 2 * q)
        to_empty = self._held * (to_mean[:-1] + to_square[:-1]) - to_alive
        return float(weights @ values), by_unit - spread(to_empty) * self._others_empty(1 - q)

    def _moments(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E[k] and E[k^2], shape (G + 1,), of which the last stands for 1, and P[k > 0], shape (G,)."""
        q = np.asarray(q, np.float64)
        mean = np.add.reduceat(q, self._starts)
        square = mean**2 + np.add.reduceat(q * (1 - q), self._starts)
        empty = np.multiply.reduceat(1 - q, self._starts)
        held = self._held * empty
        return np.append(mean + held, 1.0), np.append(square + held, 1.0), np.maximum(1 - empty, _TINY)

    def _works(self, alive: np.ndarray) -> np.ndarray:
        """The probability that no group of a set is empty, shape (S,)."""
        return np.exp(self.sets @ np.log(alive))

    def _factors(self, mean: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.where(self.squares, square[self.first], mean[self.first] * mean[self.second])

    def _spread(self, by_group: np.ndarray) -> np.ndarray:
        return np.repeat(by_group, self._sizes)

    def _others_empty(self, drop: np.ndarray) -> np.ndarray:
        """The probability that all others of a unit's group are dropped, shape (U,); exact where a drop is 0."""
        certain = drop == 0
        zeros = np.add.reduceat(certain, self._starts, dtype=int)
        rest = np.where(certain, 1.0, drop)
        product = self._spread(np.multiply.reduceat(rest, self._starts))
        return np.where(self._spread(zeros) - certain == 0, product / rest, 0.0)
