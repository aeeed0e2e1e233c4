"""Keeps units in the order of their scores, for as long as every bound holds. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfnas.search_space.closed_form import ClosedForm

_FURTHER = 64  # blocks that are tried once the next one does not fit


class Filling:
    """Fills groups of units up to bounds (method.md, section 9).

    Units enter in blocks, by the mean of their scores: the `multiple` best units of a group, then the next ones. The
    last block of a group has what is left, so that a group may always be kept entirely. No cost falls when a unit is
    added, so that the largest number of blocks within all bounds is found by bisection. Of the blocks behind that level
    those enter that still fit, one after another; a group whose next block does not fit is complete. In strict order
    none does, so that scores which are ranks within their groups leave every group the same share.

    Args:
        form: of the network.
        bounds: largest cost by resource; empty: the blocks whose mean score is positive are kept.
        multiple: units in a block, at least 1.
        strict: whether the first block that does not fit is the last one.
    """

    def __init__(self, form: ClosedForm, bounds: Mapping[str, float], multiple: int = 1, strict: bool = False):
        self._form, self._bounds, self._multiple = form, bounds, multiple
        self._further = 0 if strict else _FURTHER
        blocks = -(-form.sizes // multiple)
        place = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)  # in its group
        self._block_starts = np.repeat(form.starts, blocks) + place * multiple
        self._block_sizes = np.diff(np.append(self._block_starts, form.num_units))
        self._firsts = np.cumsum(blocks) - blocks  # the first block of each group
        self._group_of = np.repeat(np.arange(len(blocks)), blocks)
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
        entering = self._order(means)
        blocks = self._up_to_bounds(entering) if self._bounds else np.add.reduceat(means > 0, self._firsts, 1, int)
        kept = self._closed(blocks)
        keep = np.zeros(scores.shape, bool)
        np.put_along_axis(keep, order, self._place < np.repeat(kept, form.sizes, axis=1), axis=1)
        return keep

    def _order(self, means: np.ndarray) -> np.ndarray:
        """Blocks in the order in which they enter, int, shape (N, B)."""
        return self._ties[np.argsort(-means[:, self._ties], axis=1, kind="stable")]

    def _up_to_bounds(self, entering: np.ndarray) -> np.ndarray:
        """Blocks of each group that enter, int, shape (N, G)."""
        num_candidates, num_blocks = entering.shape
        ranks = np.empty(entering.shape, np.int32)
        np.put_along_axis(ranks, entering, np.arange(num_blocks, dtype=np.int32)[None], axis=1)
        low, high = np.zeros(num_candidates, int), np.full(num_candidates, num_blocks)
        while (low < high).any():
            middle = (low + high + 1) // 2
            holds = self._holds(self._entered(ranks, middle))
            low, high = np.where(holds, middle, low), np.where(holds, high, middle - 1)
        blocks = self._entered(ranks, low)
        # The next block exceeds a bound, but others may still fit.
        candidates, fits = np.arange(num_candidates), np.ones(blocks.shape, bool)
        for rank in range(self._further):
            group = self._group_of[entering[candidates, np.minimum(low + rank, num_blocks - 1)]]
            more = blocks.copy()
            more[candidates, group] += 1
            fitting = (low + rank < num_blocks) & fits[candidates, group] & self._holds(more)
            fits[candidates, group] &= fitting  # nor do the group's next ones
            blocks = np.where(fitting[:, None], more, blocks)
        return blocks

    def _entered(self, ranks: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Blocks of each group, int, shape (N, G), of candidates for which `level` blocks have entered."""
        return np.add.reduceat(ranks < level[:, None], self._firsts, axis=1, dtype=int)

    def _closed(self, blocks: np.ndarray) -> np.ndarray:
        """Units of each group, closed, int, shape (N, G)."""
        return self._form.closed(np.minimum(blocks * self._multiple, self._form.sizes), self._multiple)

    def _holds(self, blocks: np.ndarray) -> np.ndarray:
        costs = self._form.counts(self._closed(blocks), [*self._bounds])
        return np.all([costs[resource] <= most for resource, most in self._bounds.items()], axis=0)
