"""What a model will need in memory, told from its files alone, before anything is spawned."""

from supervisor.models.estimate.facts import EstimateError
from supervisor.models.estimate.model import Estimate, estimate

__all__ = ["Estimate", "EstimateError", "estimate"]
