"""Rankings of nodes and edges by many methods, and how well each one's best parts do the task."""

from circuits.ranking.areas import Curve, curve, curves
from circuits.ranking.methods import METHODS, RankConfig, rank
from circuits.ranking.ranking import Ranking

__all__ = ["METHODS", "Curve", "RankConfig", "Ranking", "curve", "curves", "rank"]
