"""Posterior-guided one-shot neural architecture search for Keras (arXiv 1906.09557).

The public names load on first use, so that `import tfnas` alone does not load TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfnas import supernets as supernets
    from tfnas.architecture import Architecture as Architecture
    from tfnas.candidates import sample as sample
    from tfnas.channels import Graph as Graph
    from tfnas.costs import cost as cost
    from tfnas.gates import Gated as Gated
    from tfnas.latencies import latency as latency
    from tfnas.latencies import layer_latencies as layer_latencies
    from tfnas.optimizers import GatedOptimizer as GatedOptimizer
    from tfnas.posterior import Posterior as Posterior
    from tfnas.ranking import rank as rank
    from tfnas.recalibration import Recalibration as Recalibration
    from tfnas.sizes import Reprice as Reprice
    from tfnas.subnets import adapt as adapt
    from tfnas.subnets import subnet as subnet
    from tfnas.supernet import Supernet as Supernet
    from tfnas.supernet import gate as gate
    from tfnas.supernet import load as load

_HOMES = {
    "Architecture": "architecture",
    "Gated": "gates",
    "GatedOptimizer": "optimizers",
    "Graph": "channels",
    "Posterior": "posterior",
    "Recalibration": "recalibration",
    "Reprice": "sizes",
    "Supernet": "supernet",
    "adapt": "subnets",
    "cost": "costs",
    "gate": "supernet",
    "latency": "latencies",
    "layer_latencies": "latencies",
    "load": "supernet",
    "rank": "ranking",
    "sample": "candidates",
    "subnet": "subnets",
}


def __getattr__(name: str) -> Any:
    if name == "supernets":
        return importlib.import_module("tfnas.supernets")
    if name == "__version__":
        return importlib.metadata.version("tfnas")
    if name in _HOMES:
        return getattr(importlib.import_module(f"tfnas.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tfnas' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__", "supernets"])
