"""Pruning: gates and how they are learned, the search for what they leave, and dropping until nothing can go."""
