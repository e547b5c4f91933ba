"""ahead.py: everything in order, one result ahead and no more, errors where they belong, and no thread left behind."""

import threading
from itertools import count

import pytest

from minddpm.fast.prefetch import ahead

PATIENCE = 10


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_results_come_in_order(n):
    assert list(ahead(lambda i: i * i, range(n))) == [i * i for i in range(n)]


def test_the_next_result_is_made_while_the_consumer_has_the_one_before():
    made = [threading.Event() for _ in range(9)]
    results = ahead(lambda i: (made[i].set(), threading.current_thread())[1], count())
    assert not made[0].is_set()
    for i in range(5):
        assert next(results) is not threading.current_thread()
        assert made[i + 1].wait(PATIENCE)           # before anybody asks for it
        assert not made[i + 2].is_set()
    results.close()


def test_an_error_is_raised_where_its_result_would_have_come():
    results = ahead(lambda i: 1 // (2 - i), count())
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_is_left_however_it_ends():
    before = threading.active_count()
    for stop in 0, 1, 3:
        results = ahead(abs, range(3))
        for _ in range(stop):
            next(results)
        results.close()
        assert threading.active_count() == before
