"""optim.py's norm, Adam and moving average on a GPU: kernels that go over many arrays at once, instead of ten launches an array.

A network has hundreds of arrays, most of them small.  A launch takes the addresses of LEAVES of them as its argument, by value,
so that nothing is copied to the device.  The plain twins are optim.global_norm, optim.adam and optim.ema.
"""

import numpy as np

from minddpm import tree
from minddpm.fast import cuda

LEAVES = 80                 # arrays a launch, as in kernels.cu
ADDRESSES = np.dtype([*((name, np.uint64, LEAVES) for name in ("p", "m", "v", "ema", "g")), ("end", np.uint32, LEAVES)])
SUMS = 256                  # blocks, each of which writes one partial sum


def global_norm(gradient):
    """√(Σ g²) over all leaves, an array () on the device."""
    leaves = [cuda.contiguous(g) for g in tree.leaves(gradient)]
    chunks = _chunks(leaves)
    sums = np.empty_like(leaves[0], shape=(len(chunks), SUMS))
    for row, chunk in zip(sums, chunks, strict=True):
        addresses, n = _addresses(g=chunk)
        cuda.launch("square_sums", SUMS, cuda.THREADS, addresses, n, row)
    return np.sqrt(sums.sum())


def adam_ema(state, gradient, step, lr, scale, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """App. B.  optim.adam with the gradient times `scale`, an array (), then optim.ema; in place on the TrainingState `state`."""
    leaves, weight = [], 1.0 if step == 1 else 1 - decay

    def add(p, m, v, ema, g):
        leaves.append((p, m, v, ema, cuda.contiguous(g)))

    tree.map(add, state.params, state.m, state.v, state.ema, gradient)
    for chunk in _chunks(leaves):
        p, m, v, ema, g = zip(*chunk, strict=True)
        addresses, n = _addresses(p=p, m=m, v=v, ema=ema, g=g)
        cuda.elementwise("adam_ema", n, addresses, n, scale, lr / (1 - beta1**step), 1 - beta2**step, 1 - beta1, 1 - beta2, eps,
                         weight)


def _chunks(leaves):
    return [leaves[first:first + LEAVES] for first in range(0, len(leaves), LEAVES)]


def _addresses(**arrays):
    """The argument `Leaves` of a kernel, {name: arrays of the same sizes}, and how many numbers the arrays of a name have."""
    addresses = np.zeros((), ADDRESSES)
    for name, leaves in arrays.items():
        addresses[name][:len(leaves)] = [leaf.data.ptr for leaf in leaves]
        sizes = [leaf.size for leaf in leaves]
    addresses["end"][:len(sizes)] = np.cumsum(sizes)
    return addresses[()], sum(sizes)
