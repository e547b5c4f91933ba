"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020) in NumPy and CuPy, every gradient by hand."""

import minddpm.unet  # noqa: F401, I001  before the fast forms, which import the plain ones
from minddpm.model import Model
from minddpm.storage import load, save

__version__ = "0.1.0"
__all__ = ["Model", "load", "save"]
