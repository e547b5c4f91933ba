"""optim.py's norm, Adam and moving average on a GPU: kernels that go over many arrays at once, instead of ten launches an array.

A network has hundreds of arrays, most of them small.  A launch takes the pointers of LEAVES of them as its argument, by value,
so that nothing is copied to the device.  The plain twins are optim.global_norm, optim.adam and optim.ema.
"""

import numpy as np

from minddpm import tree
from minddpm.fast import cuda

LEAVES = 80                 # arrays a launch, as in kernels.cu
NAMES = ("p", "m", "v", "ema", "g")
POINTERS = np.dtype([*((name, np.uint64, LEAVES) for name in NAMES), ("end", np.uint32, LEAVES)])
SUMS = 256                  # blocks, and numbers that they leave to be added up


def fits(gradient):
    """Whether the kernels are for this tree: see cuda.fits."""
    return cuda.fits(*tree.leaves(gradient))


def global_norm(gradient):
    """√(Σ g²) over all leaves, an array () on the device."""
    leaves = [cuda.contiguous(g) for g in tree.leaves(gradient)]
    chunks = list(_chunks(leaves))
    sums = np.empty_like(leaves[0], shape=(len(chunks), SUMS))
    for row, chunk in zip(sums, chunks, strict=True):
        pointers, n = _pointers(g=leaves[chunk])
        cuda.launch("square_sums", SUMS, cuda.THREADS, pointers, n, row)
    return np.sqrt(sums.sum())


def adam_ema(state, gradient, step, lr, scale, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """App. B.  optim.adam with the gradient times `scale`, an array (), then optim.ema; in place on the TrainingState `state`."""
    together = tree.map(lambda p, m, v, ema, g: (p, m, v, ema, cuda.contiguous(g)),
                        state.params, state.m, state.v, state.ema, gradient)
    leaves, weight = tree.leaves(together), 1.0 if step == 1 else 1 - decay
    for chunk in _chunks(leaves):
        pointers, n = _pointers(**dict(zip(NAMES, zip(*leaves[chunk], strict=True), strict=True)))
        cuda.elementwise("adam_ema", n, pointers, n, scale, lr / (1 - beta1**step), 1 - beta2**step, 1 - beta1, 1 - beta2, eps,
                         weight)


def _chunks(leaves):
    return [slice(first, first + LEAVES) for first in range(0, len(leaves), LEAVES)]


def _pointers(**arrays):
    """The argument `Leaves` of a kernel, and how many numbers its arrays have in all."""
    pointers = np.zeros(1, POINTERS)
    for name, leaves in arrays.items():
        pointers[name][0, :len(leaves)] = [leaf.data.ptr for leaf in leaves]
        sizes = [leaf.size for leaf in leaves]
    pointers["end"][0, :len(sizes)] = np.cumsum(sizes)
    return pointers[0], sum(sizes)
