"""Ridge regression towards given weights, from sums over rows, so that memory does not grow with their number."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg

# Penalties, as shares of the mean variance of an input.
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


@dataclasses.dataclass
class Sums:
    """Sums over rows of inputs x, shape (p,), and of residuals y - W0 x, shape (C,), float64.

    Attributes:
        count: number of rows.
        x, y: of each.
        xx, xy: of products, shape (p, p) and (p, C).
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def zeros(cls, inputs: int, outputs: int) -> Sums:
        """Sums over no rows."""
        shapes = (inputs,), (outputs,), (inputs, inputs), (inputs, outputs)
        return cls(0, *(np.zeros(shape) for shape in shapes))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds rows, shape (n, p) and (n, C)."""
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def plus(self, other: Sums) -> Sums:
        """Sums over the rows of both."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def moments(self, centered: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean products `xx` and `xy`, of the rows less their means if they are to be centered."""
        xx, xy = self.xx / self.count, self.xy / self.count
        if centered:
            x, y = self.x / self.count, self.y / self.count
            xx -= np.outer(x, x)
            xy -= np.outer(x, y)
        return xx, xy


def fitted(halves: tuple[Sums, Sums], intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the change D of weights and the offset b that make D x + b the residual, with a penalty on |D|^2.

    D minimizes E |D x + b - y|^2 + r v |D|^2, where v is the mean variance of an input. The penalty r is lowered,
    through `PENALTIES`, for as long as each half is predicted better by what was fitted to the other.

    Args:
        halves: sums over two halves of the examples.
        intercept: whether there is an offset; else it is 0, and v the mean square.

    Returns:
        Change of the weights, shape (p, C), and offset, shape (C,); 0 if a row was not finite.
    """
    moments = [half.moments(intercept) for half in halves]
    if not all(np.isfinite(part).all() for pair in moments for part in pair):
        return np.zeros_like(halves[0].xy), np.zeros_like(halves[0].y)
    best, least = np.inf, 0.0  # the error of no change is the reference
    for penalty in PENALTIES:
        error = 0.0
        for (xx, xy), (other_xx, other_xy) in zip(moments, reversed(moments), strict=True):
            change = _solved(xx, xy, penalty)
            error += float((change * (other_xx @ change - 2 * other_xy)).sum())
        if not error < least:
            break
        best, least = penalty, error
    both = halves[0].plus(halves[1])
    change = _solved(*both.moments(intercept), best)
    offset = both.y / both.count - both.x / both.count @ change if intercept else np.zeros_like(both.y)
    return change, offset


def _solved(xx: np.ndarray, xy: np.ndarray, penalty: float) -> np.ndarray:
    """The change of the weights with this penalty; 0 where the equations cannot be solved."""
    if penalty == np.inf:
        return np.zeros_like(xy)
    penalized = xx.copy()
    np.fill_diagonal(penalized, xx.diagonal() + penalty * np.trace(xx) / len(xx))
    try:
        factor = scipy.linalg.cho_factor(penalized, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return np.zeros_like(xy)
    return scipy.linalg.cho_solve(factor, xy, check_finite=False)
