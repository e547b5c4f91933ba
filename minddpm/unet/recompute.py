"""Memory policies: what a block keeps for its pullback.  Each takes f and its arguments and answers as f would, y and back.

None of them changes a number: dropout draws its masks from seeds, so a replayed forward pass is the one that was.
"""


def keep(f, *args):
    """Training with memory to spare: the pullback holds what the forward pass computed."""
    return f(*args)


def checkpoint(f, *args):
    """Training with little memory: the pullback holds the arguments alone and replays the forward pass, one more of it."""
    y, _ = f(*args)

    def checkpoint_back(dy):
        _, back = f(*args)
        return back(dy)

    return y, checkpoint_back


def discard(f, *args):
    """Inference: there is no pullback, and what the block computed on its way is free as soon as it answers."""
    y, _ = f(*args)
    return y, None


TRAINING = {"keep": keep, "checkpoint": checkpoint}             # by the names that --memory has for them
