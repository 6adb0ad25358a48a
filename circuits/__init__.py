"""Train weight-sparse transformers, extract circuits, and check that they are real."""
