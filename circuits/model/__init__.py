"""The model: its sites and weights, its configuration, one forward pass, sparse compute, checkpoints."""
