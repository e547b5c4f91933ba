"""Python threads that share one piece of work, with BLAS on a single thread while they do.

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

from threadpoolctl import threadpool_limits

from minddpm import device as backend
from minddpm import tree
from minddpm.errors import UserError
from minddpm.fast.helper import helper

PART = 32                   # images; of 8, 16 and 32, what trained 16×16 and 28×28 images fastest with two threads

BLOCK = 2**16               # numbers of an array that are worked on at a time, where the work is number by number


class Workers:
    """`with Workers(2) as workers: for result in workers.map(f, items): ...`

    threads is the number of items computed at a time; with 1 they are computed in the calling thread.  While the `with`
    block is open BLAS runs on one thread, in the whole process; its end, however it is reached, waits for the items that
    are running and gives BLAS its threads back, and the system its memory.  part: how many images of a batch one item holds
    at most: so few that what a network computes for them stays in the cache, and so many that NumPy is called rarely, since
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
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="minddpm", initializer=_seats(self.threads))
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
        consumed), so large results do not pile up.  What f raises is raised here.  However the iteration ends, items that
        have not begun are dropped and none is left running.  f may read what items share, and write only what is its own.
        """
        assert self._pool, "map works inside `with Workers(...) as workers` only"
        if self.threads == 1:
            yield from map(f, items)
            return
        flying = deque()
        try:
            for item in items:
                flying.append(self._pool.submit(f, item))
                if len(flying) > self.threads:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            wait([future for future in flying if not future.cancel()])

    def helped(self, f):
        """The same f, for `map` with a single item: an idle thread helps it with large operations, see helper.py."""
        def helped_f(item):
            before = helper.set(self._pool.submit if self.threads > 1 else None)
            try:
                return f(item)
            finally:
                helper.reset(before)

        return helped_f

    def each(self, f, *trees):
        """f(leaf, ...) for the leaves at the same place of each tree, for what f writes to them.  Leaves are shared out, and
        f gets large ones in blocks: views of at most BLOCK numbers, so that they stay in the cache while f goes over them."""
        places = []
        tree.map(lambda *leaves: places.append(leaves), *trees)
        places.sort(key=lambda leaves: leaves[0].size, reverse=True)

        def share(k):
            for leaves in places[k::self.threads]:
                for block in _blocks(leaves):
                    f(*block)

        for _ in self.map(share, range(self.threads)):
            pass

    def parts(self, n):
        """Slices that cut a batch of n into nearly equal parts of at most `part`, as many as keep every thread busy."""
        count = min(n, self.threads * math.ceil(n / (self.threads * self.part)))
        return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def _seats(threads):
    """What gives each thread a CPU of its own, if they are as many as the CPUs; else nothing, as where the system cannot.

    Threads that often wait for each other are taken for one piece of work by Linux's scheduler and put on one CPU, where they
    took twice as long.  What a worker starts is bound to its CPU too; another number of threads turns this off.  The first
    thread's CPU depends on the process, so that two processes with one item each do not meet.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    free = [cpus[(os.getpid() + k) % threads] for k in range(threads)] if len(cpus) == threads else []

    def take_a_seat():
        with suppress(OSError):                     # a sandbox may forbid it
            os.sched_setaffinity(0, {free.pop()})

    return take_a_seat if len(cpus) == threads > 1 else None


def _blocks(leaves):
    """The leaves cut alike; whole where they are small, on a GPU, or not in one piece of memory."""
    size = leaves[0].size
    if size <= BLOCK or any(backend.is_cuda(leaf) or not leaf.flags.c_contiguous for leaf in leaves):
        return [leaves]
    flat = [leaf.reshape(-1) for leaf in leaves]
    return [[leaf[i:i + BLOCK] for leaf in flat] for i in range(0, size, BLOCK)]


def _keep_freed_memory(keep):
    """Whether glibc keeps freed arrays below 32 MB, or gives what is above its usual 128 kB back.

    Told once, glibc no longer adapts these sizes by itself.  Elsewhere than on Linux with glibc: nothing.
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
