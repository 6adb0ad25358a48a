"""Attention heads: their QK and OV circuits, what they copy, where they look, and all of it in one table.

`weights` reads any model, `scores` turns weights and patterns into numbers, `report` puts them side by side.
"""

from circuits.heads.report import HeadReport, HeadRow, head_report
from circuits.heads.scores import (
    PatternScores,
    copying_scores,
    duplicate_scores,
    full_ov,
    full_qk,
    induction_scores,
    pattern_scores,
    previous_scores,
    repeated_tokens,
)
from circuits.heads.stacks import StackHeadReport, StackHeadRow, group_weights, stack_head_report
from circuits.heads.weights import HeadWeights, head_weights, ov_circuit, qk_circuit

__all__ = [
    "HeadReport",
    "HeadRow",
    "HeadWeights",
    "PatternScores",
    "StackHeadReport",
    "StackHeadRow",
    "copying_scores",
    "duplicate_scores",
    "full_ov",
    "full_qk",
    "group_weights",
    "head_report",
    "head_weights",
    "induction_scores",
    "ov_circuit",
    "pattern_scores",
    "previous_scores",
    "qk_circuit",
    "repeated_tokens",
    "stack_head_report",
]
