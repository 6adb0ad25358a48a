"""Synthetic tasks, training text and tokenizers; imports nothing from `circuits`."""
