"""Models and formats that others made: one file for each."""

from circuits.interop.hf import load_hf
from circuits.interop.lens import LensSubject
from circuits.interop.openai import load_openai, save_openai
from circuits.interop.openai_circuits import load_openai_circuit

__all__ = ["LensSubject", "load_hf", "load_openai", "load_openai_circuit", "save_openai"]
