"""Samples of a model, batch after batch, with a progress bar."""

import numpy as np

from minddpm.app.progress import Progress
from minddpm.fast import parallel
from minddpm.fast.device import out_of_memory, to_host
from minddpm.sample import image_noise, reverse_process

BATCH = 64                  # images at a time


def generate(model, n, seed, workers, batch=BATCH, on_step=None):
    """Alg. 2.  n samples x_0 (n,H,W,C) in [−1, 1], float32, on the host; sample k of a seed is the same whatever n and batch.

    on_step(k, t, x_t) is called with every x_t of each batch, whose first sample has the number k.  UserError: out of memory.
    """
    config, s, like = model.config, model.schedule, model.params["conv_in"]["bias"]
    output, starts, x0 = parallel(model.output, workers), range(0, n, batch), []
    with out_of_memory(f"sampling with --batch {batch}", "try a smaller --batch"), \
            Progress("sample", s.T * len(starts), "step") as progress:
        for k in starts:
            shape = (min(batch, n - k), config.image_size, config.image_size, config.in_channels)
            for t, x_t, _ in reverse_process(s, output, image_noise(shape, seed, k, like), **model.how):
                if on_step:
                    on_step(k, t, x_t)
                if t < s.T:
                    progress.update(f"images {k + 1}-{k + shape[0]} of {n}")
            x0.append(to_host(x_t))
    return np.concatenate(x0)
