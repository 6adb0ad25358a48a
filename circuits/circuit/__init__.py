"""Circuits: what they are, what a model does with only one kept, how well it does a task, how two compare."""
