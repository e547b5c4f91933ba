"""Out of memory: one sentence instead of a traceback, and in it a batch that does fit, found by trying."""

from minddpm import device as backend
from minddpm.errors import UserError


def proposing(compute, batch, attempt, device, doing):
    """compute() -> its result.  UserError where memory runs out: the largest of batch/2, batch/4, …, 1 that fits, if one does.

    attempt(n) computes the same for n images.  doing: what is being done, a word for the sentence.
    """
    try:
        return compute()
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        reason = backend.reason(error)
    # Not in the except block: there the error is alive, and its traceback holds what compute had allocated.
    smaller = fitting(attempt, batch // 2, device)
    advice = f"--batch {smaller} fits" if smaller else "a single image does not fit either"
    raise UserError(f"out of memory while {doing} with --batch {batch} ({reason}); {advice}")


def fitting(attempt, batch, device):
    """The largest of batch, batch/2, …, 1 images for which attempt(n) does not run out of memory; 0 if there is none."""
    while batch:
        backend.free_memory(device)
        try:
            attempt(batch)
            return batch
        except Exception as error:
            if not backend.is_out_of_memory(error):
                raise
        batch //= 2
    return 0
