"""What a network costs: the resources that a search is given a share of."""

from __future__ import annotations

import enum


class Resource(enum.StrEnum):
    """A resource, by the name that settings and files give it."""

    PARAMETERS = "parameters"
    MULTIPLY_ADDS = "multiply_adds"
    LATENCY = "latency"

    @property
    def words(self) -> str:
        """As sentences have it: 'multiply-adds'."""
        return self.value.replace("_", "-")
