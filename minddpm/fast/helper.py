"""A second thread for one large operation, where a batch has too few images for all threads: sampling a single image.

`helper` is None, or what starts f(*args) in a thread that has nothing else to do, and answers with its future.  Only
workers.py sets it, for the call that it makes.
"""

from contextvars import ContextVar

helper = ContextVar("helper", default=None)
