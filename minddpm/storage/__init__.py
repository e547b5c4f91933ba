"""A model's folder, which diffusers opens: configurations as JSON, weights as safetensors, files written atomically."""

from minddpm.storage.folder import load, save

__all__ = ["load", "save"]
