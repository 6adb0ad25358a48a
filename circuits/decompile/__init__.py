"""A circuit that can be read: as a short numpy function, and in words."""

from circuits.decompile.in_text import contexts
from circuits.decompile.source import function_name, to_python
from circuits.decompile.words import describe, sentences

__all__ = ["contexts", "describe", "function_name", "sentences", "to_python"]
