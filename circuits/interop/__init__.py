"""Models and formats that others made: one file for each."""

from circuits.interop.gpt2 import from_gpt2
from circuits.interop.hf import load_hf
from circuits.interop.lens import LensSubject
from circuits.interop.openai import load_openai, save_openai
from circuits.interop.openai_circuits import load_openai_circuit

__all__ = ["LensSubject", "from_gpt2", "load_hf", "load_openai", "load_openai_circuit", "save_openai"]
