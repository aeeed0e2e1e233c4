"""Posterior-guided one-shot neural architecture search for Keras (arXiv 1906.09557).

The public names load on first use, so that `import tfnas` alone does not load TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from tfnas.common import installation

if TYPE_CHECKING:
    from tfnas import layers as layers
    from tfnas import supernets as supernets
    from tfnas import testing as testing
    from tfnas.cutting.latency_bound import meet_latency as meet_latency
    from tfnas.cutting.subnets import subnet as subnet
    from tfnas.gating.gates import Gated as Gated
    from tfnas.gating.optimizers import GatedOptimizer as GatedOptimizer
    from tfnas.gating.placement import gate as gate
    from tfnas.gating.saving import load as load
    from tfnas.gating.supernet import Supernet as Supernet
    from tfnas.graph.channels import Graph as Graph
    from tfnas.graph.costs import cost as cost
    from tfnas.graph.latencies import compare_latency as compare_latency
    from tfnas.ranking.ranking import rank as rank
    from tfnas.ranking.recalibration import Recalibration as Recalibration
    from tfnas.search_space.architecture import Architecture as Architecture
    from tfnas.search_space.posterior import Posterior as Posterior
    from tfnas.search_space.unit_posterior import UnitPosterior as UnitPosterior
    from tfnas.shrinking.preview import preview as preview
    from tfnas.shrinking.shrink import shrink as shrink
    from tfnas.training.best_cut import best_cut as best_cut

installation.check()

_HOMES = {
    "Architecture": "search_space.architecture",
    "Gated": "gating.gates",
    "GatedOptimizer": "gating.optimizers",
    "Graph": "graph.channels",
    "Posterior": "search_space.posterior",
    "Recalibration": "ranking.recalibration",
    "Supernet": "gating.supernet",
    "UnitPosterior": "search_space.unit_posterior",
    "best_cut": "training.best_cut",
    "compare_latency": "graph.latencies",
    "cost": "graph.costs",
    "gate": "gating.placement",
    "load": "gating.saving",
    "meet_latency": "cutting.latency_bound",
    "preview": "shrinking.preview",
    "rank": "ranking.ranking",
    "shrink": "shrinking.shrink",
    "subnet": "cutting.subnets",
}
_MODULES = ("layers", "supernets", "testing")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfnas.{name}")
    if name == "__version__":
        return importlib.metadata.version("tfnas")
    if name in _HOMES:
        return getattr(importlib.import_module(f"tfnas.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tfnas' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES, "__version__"])
