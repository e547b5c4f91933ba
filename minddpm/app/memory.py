"""Running out of memory: one sentence instead of a traceback."""

from contextlib import contextmanager

from minddpm.errors import UserError
from minddpm.fast.device import is_out_of_memory, reason


@contextmanager
def out_of_memory(doing, advice):
    """A context in which running out of memory, on the host or a GPU, raises a UserError with what was being done and advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory while {doing} ({reason(error)}); {advice}") from error
