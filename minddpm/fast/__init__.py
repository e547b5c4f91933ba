"""The functions of the paper's files, faster: tested against the plain ones, and passed in where speed is wanted.

    ops_for(params, image_size)             layers to pass as `ops`
    Workers, workers_for, parallel          threads, and a network that they compute for sampling
    training.gradient_by, update_by         the two halves of Alg. 1, line 5
"""

from minddpm.fast.ops import ops_for
from minddpm.fast.workers import Workers, parallel, workers_for

__all__ = ["Workers", "ops_for", "parallel", "workers_for"]
