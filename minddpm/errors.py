"""The one exception that a person can put right: its text is a single sentence for them to read."""


class UserError(Exception):
    """A wrong file, shape, range, name or flag.  The text names what was found and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
