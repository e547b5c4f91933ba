"""One step ahead: what the next step needs from the host is made in a thread while this step is computed."""

from concurrent.futures import ThreadPoolExecutor


def ahead(make, items):
    """Yields make(item) for each item, in their order; while the consumer has one result, the next is made in another thread.

    What `make` or the items raise is raised here.  However the iteration ends, nothing is left running.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = None
        for item in items:
            ready, coming = coming, thread.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
