"""Keeps units in the order of their scores, for as long as every bound holds. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfnas.search_space.closed_form import ClosedForm


class Filling:
    """Fills groups of units up to bounds (method.md, section 9).

    Units enter in blocks, by the mean of their scores: the `multiple` best units of a group, then the next ones. The
    last block of a group has what is left, so that a group may always be kept entirely. No cost falls when a unit is
    added, so that the largest number of blocks within all bounds is found by bisection.

    Args:
        form: of the network.
        bounds: largest cost by resource; empty: the blocks whose mean score is positive are kept.
        multiple: units in a block, at least 1.
    """

    def __init__(self, form: ClosedForm, bounds: Mapping[str, float], multiple: int = 1):
        self._form, self._bounds, self._multiple = form, bounds, multiple
        blocks = -(-form.sizes // multiple)
        place = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)  # in its group
        self._block_starts = np.repeat(form.starts, blocks) + place * multiple
        self._block_sizes = np.diff(np.append(self._block_starts, form.num_units))
        self._first_blocks = np.cumsum(blocks) - blocks
        # Equal scores enter evenly over the groups, not group after group.
        self._ties = np.argsort((place + 0.5) / np.repeat(blocks, blocks), kind="stable")
        self._place = np.arange(form.num_units) - np.repeat(form.starts, form.sizes)

    def keep(self, scores: np.ndarray) -> np.ndarray:
        """Masks of the units kept, closed, bool of the same shape.

        Args:
            scores: one row per candidate, float64, shape (N, U).
        """
        form = self._form
        order = np.concatenate(
            [
                start + np.argsort(-scores[:, start : start + size], axis=1, kind="stable")
                for start, size in zip(form.starts, form.sizes, strict=True)
            ],
            axis=1,
        )
        descending = np.take_along_axis(scores, order, axis=1)
        means = np.add.reduceat(descending, self._block_starts, axis=1) / self._block_sizes
        ranks = self._ranks(means)
        kept = self._kept(ranks, self._level(ranks) if self._bounds else (means > 0).sum(1))
        keep = np.zeros(scores.shape, bool)
        np.put_along_axis(keep, order, self._place < np.repeat(kept, form.sizes, axis=1), axis=1)
        return keep

    def _ranks(self, means: np.ndarray) -> np.ndarray:
        """The number of blocks that enter before each block, shape (N, B)."""
        order = self._ties[np.argsort(-means[:, self._ties], axis=1, kind="stable")]
        ranks = np.empty(means.shape, np.int32)
        np.put_along_axis(ranks, order, np.arange(means.shape[1], dtype=np.int32)[None], axis=1)
        return ranks

    def _level(self, ranks: np.ndarray) -> np.ndarray:
        """The largest number of blocks of each candidate within all bounds, int, shape (N,)."""
        low, high = np.zeros(len(ranks), int), np.full(len(ranks), ranks.shape[1])
        while (low < high).any():
            middle = (low + high + 1) // 2
            holds = self._holds(self._kept(ranks, middle))
            low, high = np.where(holds, middle, low), np.where(holds, high, middle - 1)
        return low

    def _kept(self, ranks: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Units of each group, closed, of candidates that keep `level` blocks, int, shape (N, G)."""
        blocks = np.add.reduceat(ranks < level[:, None], self._first_blocks, axis=1, dtype=np.int64)
        return self._form.closed(np.minimum(blocks * self._multiple, self._form.sizes), self._multiple)

    def _holds(self, kept: np.ndarray) -> np.ndarray:
        costs = self._form.counts(kept, [*self._bounds])
        return np.all([costs[resource] <= most for resource, most in self._bounds.items()], axis=0)
