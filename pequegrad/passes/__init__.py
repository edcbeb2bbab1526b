"""Rewritings of graphs: pure functions from Graph to an equal Graph, generic over traits."""

from .base import Observer, Pass, run_passes
from .pipeline import PIPELINE, run_pipeline

__all__ = ["PIPELINE", "Observer", "Pass", "run_passes", "run_pipeline"]
