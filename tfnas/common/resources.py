"""The resources of a network, of which a search has a target share."""

from __future__ import annotations

import enum


class Resource(enum.StrEnum):
    """A resource, by the name that settings and files give it."""

    PARAMETERS = "parameters"
    MULTIPLY_ADDS = "multiply_adds"
    LATENCY = "latency"

    @property
    def words(self) -> str:
        """Returns the name in prose, such as 'multiply-adds'."""
        return self.value.replace("_", "-")
