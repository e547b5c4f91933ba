"""The one exception that a person can put right: its text is a single sentence for them to read, on one line."""


class UserError(Exception):
    """A wrong file, shape, range, name or flag.  The text names what was found and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """


def printable(text, length=200):
    """Text from a file that others wrote, as a message may show it: its beginning, nothing in it that moves a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:length]) + ("…" if len(text) > length else "")
