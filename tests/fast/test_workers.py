"""workers.py: results in order, really side by side, few in flight, BLAS on one thread meanwhile and as before afterwards."""

import ctypes
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minddpm.errors import UserError
from minddpm.fast import adam, matmul
from minddpm.fast.matmul import spare_thread
from minddpm.fast.workers import Workers, parallel

PATIENCE = 10   # seconds until a test that waits for another thread fails instead of hanging


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def two_blas_threads():
    """BLAS starts on two threads, also where the environment or the number of cores says one."""
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert before and set(before) == {2}
        yield
        assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 20])
def test_results_come_in_the_order_of_the_items(threads, n):
    def late_if_even(i):
        time.sleep(0.002 * (i % 2 == 0))
        return i * i

    with Workers(threads) as workers:
        assert list(workers.map(late_if_even, iter(range(n)))) == [i * i for i in range(n)]
        assert list(workers.map(str, range(n))) == [str(i) for i in range(n)]


@pytest.mark.parametrize("threads", [2, 3])
def test_as_many_items_as_threads_run_at_the_same_time(threads):
    meeting = threading.Barrier(threads, timeout=PATIENCE)
    running, most, lock = 0, 0, threading.Lock()

    def meet(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait()
        with lock:
            running -= 1
        return threading.current_thread()

    with Workers(threads) as workers:
        seen = set(workers.map(meet, range(4 * threads)))
    assert most == len(seen) == threads
    assert threading.current_thread() not in seen
    assert not any(thread.is_alive() for thread in seen)


def test_one_thread_is_the_calling_thread():
    with Workers(1) as workers:
        assert set(workers.map(lambda _: threading.current_thread(), range(3))) == {threading.current_thread()}


@pytest.mark.parametrize("threads, ahead", [(1, 0), (2, 2), (4, 4)])
def test_items_in_flight_are_bounded(threads, ahead):
    n, taken = 12, 0

    def items():
        nonlocal taken
        for i in range(n):
            taken += 1
            yield i

    with Workers(threads) as workers:
        results = workers.map(abs, items())
        assert taken == 0
        for i, _ in enumerate(results, start=1):
            assert taken == min(n, i + ahead)    # the result in hand, and one running on each thread
            assert taken - (i - 1) <= threads + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_runs_on_one_thread_while_open_and_as_before_afterwards(threads):
    workers = Workers(threads)
    assert set(blas_threads()) == {2}
    for _ in range(2):
        with workers:
            assert set(blas_threads()) == {1}
            for inside in workers.map(lambda _: blas_threads(), range(3)):
                assert set(inside) == {1}
            with Workers(2):
                assert set(blas_threads()) == {1}
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {2}


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_body_raises_gives_blas_its_threads_back(threads):
    with pytest.raises(KeyboardInterrupt):
        with Workers(threads):
            raise KeyboardInterrupt
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize("threads", [1, 2])
def test_what_f_raises_is_raised_to_the_caller(threads):
    got, ran = [], []

    def f(i):
        ran.append(i)
        return 1 // (3 - i)

    with pytest.raises(ZeroDivisionError):
        with Workers(threads) as workers:
            for result in workers.map(f, range(1000)):
                got.append(result)
    assert got == [0, 0, 1]
    assert max(ran) <= 3 + threads
    assert set(blas_threads()) == {2}


def test_after_an_exception_nothing_is_left_running():
    started, finished = threading.Event(), threading.Event()

    def f(i):
        if i == 0:
            assert started.wait(PATIENCE)
            raise ValueError("item 0")
        started.set()
        time.sleep(0.1)
        finished.set()

    with Workers(2) as workers:
        with pytest.raises(ValueError, match="item 0"):
            list(workers.map(f, range(2)))
        assert finished.is_set()
        assert list(workers.map(abs, [-1, -2])) == [1, 2]


def test_items_that_have_not_begun_are_dropped():
    busy, ran = threading.Event(), []

    def items():
        yield from (0, 1)
        raise OSError("the third item cannot be read")

    with Workers(2) as workers:
        blocked = [workers._pool.submit(busy.wait, PATIENCE) for _ in range(2)]
        with pytest.raises(OSError, match="third item"):
            list(workers.map(ran.append, items()))
        busy.set()
        assert all(future.result() for future in blocked)
    assert ran == []


def test_a_loop_that_stops_early_ends_its_items():
    running = []
    with Workers(2) as workers:
        for result in workers.map(lambda i: (running.append(i), time.sleep(0.02), running.remove(i), i)[-1], range(50)):
            if result == 3:
                break
        del result
        assert running == []


def test_matrix_products_in_threads_are_the_same_bits():
    a = np.random.default_rng(0).standard_normal((8, 60, 60))
    with Workers(1) as one:
        alone = list(one.map(lambda x: x @ x.T, a))
    with Workers(2) as two:
        np.testing.assert_array_equal(list(two.map(lambda x: x @ x.T, a)), alone)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None])
def test_threads_must_be_a_whole_number_of_at_least_one(threads):
    with pytest.raises(UserError) as error:
        Workers(threads)
    assert str(error.value) == f"threads is {threads!r}, expected a whole number of at least 1"


@pytest.mark.parametrize("threads", [1, 2])
def test_map_outside_the_with_block_is_refused(threads):
    with pytest.raises(AssertionError, match="inside `with Workers"):
        next(Workers(threads).map(abs, [1]))


def test_import_of_workers_leaves_blas_alone():
    code = ("import numpy, threadpoolctl as t; before = t.threadpool_info(); import minddpm.fast.workers; "
            "assert before and t.threadpool_info() == before")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "mallopt"), reason="glibc's alone")
def test_freed_memory_is_used_again_while_workers_run_and_given_back_after():
    """Page faults of filling 8 MB again and again: 2,000 a time when the system gives the memory anew."""
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            np.empty(2**20).fill(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with Workers(1):
        faults()
        inside = faults()
    after = faults()
    assert inside < 100 and after > 10 * max(inside, 1)


# CPUs and help


def cpus():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@pytest.mark.skipif(len(cpus()) < 2, reason="needs two CPUs, and a system that can place threads")
def test_as_many_threads_as_cpus_have_one_each_and_the_caller_keeps_all():
    before = cpus()
    meeting = threading.Barrier(len(before), timeout=PATIENCE)

    def where(_):
        meeting.wait()
        return frozenset(os.sched_getaffinity(0))

    with Workers(len(before)) as workers:
        seen = list(workers.map(where, before))
        assert cpus() == before
    assert {cpu for places in seen for cpu in places} == before and all(len(places) == 1 for places in seen)
    with Workers(len(before) + 1) as workers:                       # another number of threads: wherever there is room
        assert set(workers.map(lambda _: frozenset(os.sched_getaffinity(0)), range(4))) == {frozenset(before)}


@pytest.mark.skipif(len(cpus()) < 2, reason="needs two CPUs, and a system that can place threads")
def test_where_threads_may_not_be_placed_they_work_all_the_same(monkeypatch):
    def forbidden(*_):
        raise PermissionError("no")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with Workers(len(cpus())) as workers:
        assert list(workers.map(str, range(3))) == ["0", "1", "2"]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_helping_function_can_ask_an_idle_thread_and_no_other_function_can(threads):
    def who(_):
        help = spare_thread.get()
        return help and (threading.get_ident(), help(threading.get_ident).result(PATIENCE))

    with Workers(threads) as workers:
        [found] = workers.map(workers.helping(who), [0])
        meeting = threading.Barrier(threads, timeout=PATIENCE)
        assert list(workers.map(lambda _: (meeting.wait(), spare_thread.get())[1], range(threads))) == [None] * threads
    assert spare_thread.get() is None
    assert found is None if threads == 1 else len({*found, threading.get_ident()}) == 3


def test_a_helping_function_that_fails_leaves_no_spare_thread_behind():
    def fail(_):
        raise ValueError("no")

    with Workers(1) as workers:
        with pytest.raises(ValueError, match="no"):
            list(workers.map(workers.helping(fail), [0]))
        assert spare_thread.get() is None


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_for_each_leaf_reaches_every_leaf_once(threads):
    a, b = ({"x": [np.full(7, k), np.full((2, 3), k)], "y": np.full(1, k)} for k in (0.0, 1.0))

    def write(x, y):
        np.add(x, y + 1, out=x)

    with Workers(threads) as workers:
        workers.for_each_leaf(write, a, b)
    assert all((x == 2).all() for x in (*a["x"], a["y"]))


@pytest.mark.parametrize("size", [1, adam.BLOCK - 1, adam.BLOCK, adam.BLOCK + 1, 3 * adam.BLOCK + 5])
def test_adam_goes_over_every_number_in_blocks_that_fit_the_cache(size):
    blocks = adam._blocks(np.arange(size), np.arange(size) + 1)
    assert all(a.size == b.size <= adam.BLOCK for a, b in blocks)
    np.testing.assert_array_equal(np.concatenate([a for a, _ in blocks]), np.arange(size))
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), np.arange(size) + 1)


@pytest.mark.parametrize("B, asked", [(1, True), (2, False)])
def test_a_single_image_has_a_spare_thread(B, asked):
    with Workers(2) as workers:
        network = parallel(lambda x, t: np.full_like(x, spare_thread.get() is not None), workers)
        assert (network(np.zeros((B, 2, 2, 1)), 5) == asked).all()


def test_two_callers_that_help_each_other_do_not_wait_for_ever(monkeypatch):
    """Both threads of one pool ask for help at the same time, and there is nobody."""
    monkeypatch.setattr(matmul, "MIN_WEIGHTS_TO_SPLIT", 0)
    meeting = threading.Barrier(2, timeout=PATIENCE)
    a, b = np.ones((2, 3, 4)), np.ones((2, 4, 5))

    def multiply(_):
        meeting.wait()
        out = np.zeros((2, 3, 5))
        matmul.matmul_batched(a, b, out)
        return out

    with Workers(2) as workers:
        found = list(workers.map(workers.helping(multiply), range(2)))
    assert all((out == 4).all() for out in found)
