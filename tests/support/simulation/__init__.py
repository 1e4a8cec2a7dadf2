"""Workers in simulated time."""

from support.simulation.scenario import Fault, Outcome, Scenario, Violation
from support.simulation.world import simulate

__all__ = ["Fault", "Outcome", "Scenario", "Violation", "simulate"]
