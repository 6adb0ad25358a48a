"""How heads (and MLP neurons) compose across layers: scores, their significance, paths, and effects on data.

A score is `||M_writer M_reader|| / (||M_writer|| ||M_reader||)`, TransformerLens's definition: a number that says
little until it is compared with what unrelated matrices of the same shape and density give. `composition` compares
it with a null model (see `nulls`) and controls the false-discovery rate over all pairs.
"""

from circuits.composition.branches import (
    ComposeCircuit,
    ComposePruneConfig,
    compose_gates,
    prune_compositions,
    run_composed,
)
from circuits.composition.data import DataComposition, composition_on_data
from circuits.composition.dynamic import CompositionMaps, composition_maps, folded_circuits, head_mixing
from circuits.composition.nulls import NULLS, Null, benjamini_hochberg
from circuits.composition.parts import Reader, Writer
from circuits.composition.paths import HeadPath, WeightPath, head_paths, virtual_head, weight_paths
from circuits.composition.score import Composition, CompositionEdge, composition, composition_scores

__all__ = [
    "NULLS",
    "ComposeCircuit",
    "ComposePruneConfig",
    "Composition",
    "CompositionEdge",
    "CompositionMaps",
    "DataComposition",
    "HeadPath",
    "Null",
    "Reader",
    "WeightPath",
    "Writer",
    "benjamini_hochberg",
    "compose_gates",
    "composition",
    "composition_maps",
    "composition_on_data",
    "composition_scores",
    "folded_circuits",
    "head_mixing",
    "head_paths",
    "prune_compositions",
    "run_composed",
    "virtual_head",
    "weight_paths",
]
