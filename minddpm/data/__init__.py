"""Data sets: the built-in ones and files of your own, as arrays of bytes; Sec. 3.3's scaling to [−1, 1]."""

from minddpm.data.sets import BUILT_IN, Dataset, load, scale, unscale

__all__ = ["BUILT_IN", "Dataset", "load", "scale", "unscale"]
