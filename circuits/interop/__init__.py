"""Models and formats that others made: one file for each."""

from circuits.interop.lens import LensSubject

__all__ = ["LensSubject"]
