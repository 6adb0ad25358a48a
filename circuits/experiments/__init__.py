"""Experiments whose numbers the documentation quotes: each leaves one file in docs/results, and can be resumed."""
