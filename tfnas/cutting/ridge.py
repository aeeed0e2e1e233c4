"""Ridge regression towards given weights, from sums over rows, so that memory does not grow with their number."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg

# Candidates of the penalty, as shares of the mean variance of an input; the last leaves the weights as they are.
PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, np.inf)


@dataclasses.dataclass
class Sums:
    """Sums over rows of inputs x, shape (p,), and of residuals y - W0 x, shape (C,), float64.

    Attributes:
        count: number of rows.
        x, y: of each.
        xx, xy: of products, shape (p, p) and (p, C).
        yy: of squares, shape (C,).
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def zeros(cls, inputs: int, outputs: int) -> Sums:
        """Sums over no rows."""
        shapes = (inputs,), (outputs,), (inputs, inputs), (inputs, outputs), (outputs,)
        return cls(0, *(np.zeros(shape) for shape in shapes))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds rows, shape (n, p) and (n, C)."""
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += (y * y).sum(0)

    def plus(self, other: Sums) -> Sums:
        """Sums over the rows of both."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def centered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariances `xx` and `xy`, and variances `yy`, of rows less their means."""
        x, y = self.x / self.count, self.y / self.count
        return (
            self.xx / self.count - np.outer(x, x),
            self.xy / self.count - np.outer(x, y),
            self.yy / self.count - y * y,
        )

    def uncentered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of the rows as they are."""
        return self.xx / self.count, self.xy / self.count, self.yy / self.count


def fitted(halves: tuple[Sums, Sums], intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the change D of weights and the offset b that make D x + b the residual, with a penalty on |D|^2.

    D minimizes E |D x + b - y|^2 + r v |D|^2, where v is the mean variance of an input. The penalty r is the one of
    `PENALTIES` with which each half is predicted best by what was fitted to the other.

    Args:
        halves: sums over two halves of the examples.
        intercept: whether there is an offset; else it is 0.

    Returns:
        Change of the weights, shape (p, C), and offset, shape (C,).
    """
    moments = [half.centered() if intercept else half.uncentered() for half in halves]
    errors = np.zeros(len(PENALTIES))
    for (xx, xy, _), (other_xx, other_xy, other_yy) in zip(moments, reversed(moments), strict=True):
        for i, penalty in enumerate(PENALTIES):
            change = _solved(xx, xy, penalty)
            errors[i] += (change * (other_xx @ change - 2 * other_xy)).sum() + other_yy.sum()
    both = halves[0].plus(halves[1])
    xx, xy, _ = both.centered() if intercept else both.uncentered()
    change = _solved(xx, xy, PENALTIES[int(np.nanargmin(errors))])
    offset = both.y / both.count - both.x / both.count @ change if intercept else np.zeros_like(both.y)
    return change, offset


def _solved(xx: np.ndarray, xy: np.ndarray, penalty: float) -> np.ndarray:
    """The change of the weights with this penalty; NaN where the equations cannot be solved."""
    if penalty == np.inf:
        return np.zeros_like(xy)
    ridge = penalty * np.trace(xx) / len(xx)
    with np.errstate(all="ignore"):
        try:
            penalized = xx + np.diag(np.full(len(xx), ridge))
            return scipy.linalg.solve(penalized, xy, assume_a="pos", overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return np.full_like(xy, np.nan)
