"""BLAS on one thread: where several programs share the cores, its threads spin and wait for each other (see workers.py)."""

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    with threadpool_limits(1, user_api="blas"):
        yield
