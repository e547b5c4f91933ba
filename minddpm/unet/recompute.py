"""What the forward pass stores for the backward pass: three policies, one of them gradient checkpointing.

A policy calls f(*args) -> y, back for a block or layer f and returns the same.  No policy changes the result: dropout's masks
depend on seeds, so to compute a block again repeats it exactly.
"""


def store(f, *args):
    """y, back as f computes them: `back` holds all that the forward pass stored."""
    return f(*args)


def recompute(f, *args):
    """y, and a `back` that holds f's arguments alone and computes its forward pass once more (gradient checkpointing)."""
    y, _ = f(*args)

    def recompute_back(dy):
        _, back = f(*args)
        return back(dy)

    return y, recompute_back


def inference(f, *args):
    """y, None: nothing is stored, and there is no gradient."""
    y, _ = f(*args)
    return y, None
