"""Python threads that compute a batch in parts, with BLAS on a single thread while they do.

NumPy releases the interpreter's lock in ufuncs, copies and matrix products, so half-batches in Python threads run side by
side: two threads on two cores were measured 1.8 times as fast as one.  BLAS's own threads do less (1.4 times, a third of it
spent waiting) and collapse when the cores are shared, because OpenBLAS spins: a training step of 4 s took 92 s on a busy
machine.  Hence one BLAS thread a worker, while the workers run and never longer: importing this file changes nothing.

For the same time freed memory stays with the process, for the next array of that size.  The layers make thousands of arrays a
step; to get each from the system and give it back took a tenth of a step, and made the threads wait for each other.
"""

import ctypes
import math
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import numpy as np
from threadpoolctl import threadpool_limits

from minddpm import tree
from minddpm.errors import UserError
from minddpm.fast.matmul import spare_thread

PART = 32                   # images; of 8, 16 and 32, the fastest for training on 16×16 and 28×28 images with two threads


def workers_for(device, threads=None, batch=PART):
    """The Workers for a device, "cpu" or "cuda", and `threads`, by default one a CPU; a GPU takes the batch whole."""
    return Workers(1, part=batch) if device == "cuda" else Workers(threads or cpu_count())


def cpu_count():
    """The number of CPUs this process may use, which under taskset, Slurm or a cpuset is fewer than the machine has."""
    if hasattr(os, "process_cpu_count"):             # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):             # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel(eps_theta, workers):
    """The same eps_theta(x_t, t), computed by workers that take the batch in parts."""
    def parallel_eps_theta(x_t, t):
        def of_part(images):
            return eps_theta(x_t[images], t[images] if np.ndim(t) else t)

        parts = workers.parts(len(x_t))
        return np.concatenate(list(workers.map(workers.helping(of_part) if len(parts) == 1 else of_part, parts)))

    return parallel_eps_theta


class Workers:
    """`with Workers(2) as workers: for result in workers.map(f, items): ...`

    threads is the number of items computed at a time; with 1 they are computed in the calling thread.  While the `with`
    block is open BLAS runs on one thread, in the whole process; its end, however it is reached, waits for the items that
    are running and gives BLAS its threads back, and the system its memory.  part: how many images of a batch one item holds
    at most: so few that a network's arrays for them stay in the cache, and so many that NumPy is called rarely, since
    between two calls the threads wait for each other.  UserError unless threads is an int of at least 1.
    """

    def __init__(self, threads, part=PART):
        if not isinstance(threads, int) or threads < 1:
            raise UserError(f"threads is {threads!r}, expected a whole number of at least 1")
        self.threads = threads
        self.part = part
        self._pool = None

    def __enter__(self):
        self._limit = threadpool_limits(1, user_api="blas")
        _keep_freed_memory(True)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="minddpm", initializer=_pinning(self.threads))
        return self

    def __exit__(self, *error):
        pool, self._pool = self._pool, None
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:
            self._limit.restore_original_limits()
            _keep_freed_memory(False)

    def map(self, f, items):
        """Yields f(item) for each item, in the order of the items.

        Items are taken only as results are: at most threads + 1 of them are in flight (taken, and their result not yet
        consumed), so large results do not pile up.  An exception in f is raised here.  However the iteration ends, items that
        have not begun are dropped and none is left running.  f may read shared arrays, and write only its own.
        """
        assert self._pool, "map works inside `with Workers(...) as workers` only"
        if self.threads == 1:
            yield from map(f, items)
            return
        pending = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(f, item))
                if len(pending) > self.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            wait([future for future in pending if not future.cancel()])

    def helping(self, f):
        """The same f, for `map` with a single item: an idle thread takes half of its large products, see matmul.py."""
        def helping_f(item):
            before = spare_thread.set(self._pool.submit if self.threads > 1 else None)
            try:
                return f(item)
            finally:
                spare_thread.reset(before)

        return helping_f

    def for_each_leaf(self, f, *trees):
        """Call f(leaf, ...) for the leaves at the same place of each tree, which f changes in place; shared out by size."""
        places = []
        tree.map(lambda *leaves: places.append(leaves), *trees)
        places.sort(key=lambda leaves: leaves[0].size, reverse=True)

        def share(k):
            for leaves in places[k::self.threads]:
                f(*leaves)

        list(self.map(share, range(self.threads)))

    def parts(self, n):
        """Slices that cut a batch of n into nearly equal parts of at most `part`, as many as keep every thread busy."""
        count = min(n, self.threads * math.ceil(n / (self.threads * self.part)))
        return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def _pinning(threads):
    """A function that pins each thread of a pool to a CPU of its own, or None where there are not as many threads as CPUs.

    Linux's scheduler takes threads that often wait for each other for one piece of work and puts them on one CPU, where they
    took twice as long.  Another number of threads turns pinning off.  The first thread's CPU depends on the process, so that
    two processes with one item each do not meet.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    free = [cpus[(os.getpid() + k) % threads] for k in range(threads)] if len(cpus) == threads else []

    def pin():
        with suppress(OSError):                     # a sandbox may forbid it
            os.sched_setaffinity(0, {free.pop()})

    return pin if len(cpus) == threads > 1 else None


def _keep_freed_memory(keep):
    """Whether glibc keeps freed arrays below 32 MB, or gives what is above its usual 128 kB back.

    Once set, glibc no longer adapts these sizes by itself.  Elsewhere than on Linux with glibc it does nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3                    # their numbers in malloc.h
    libc.mallopt(mmap_threshold, 2**25 if keep else 2**17)
    libc.mallopt(trim_threshold, 2**31 - 1 if keep else 2**17)
    libc.mallopt(top_pad, 2**26 if keep else 2**17)
    if not keep:
        libc.malloc_trim(0)
