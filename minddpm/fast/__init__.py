"""The functions of the paper's files, faster: tested against the plain ones, and passed in where speed is wanted.

    ops_for(params, image_size)     layers to pass as `ops`     gradient_by, update_by(workers)     the halves of Alg. 1, line 5
    Workers, workers_for            threads                     parallel(eps_theta, workers)        a network for sampling
"""

from minddpm.fast.ops import ops_for
from minddpm.fast.training import gradient_by, update_by
from minddpm.fast.workers import Workers, parallel, workers_for

__all__ = ["Workers", "gradient_by", "ops_for", "parallel", "update_by", "workers_for"]
