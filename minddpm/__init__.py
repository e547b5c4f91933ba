"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020) in NumPy and CuPy, every gradient by hand."""

from minddpm.model import Model
from minddpm.storage import load, save

__version__ = "0.1.0"
__all__ = ["Model", "load", "save"]
