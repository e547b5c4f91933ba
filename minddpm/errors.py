"""An error that the user can fix, and text from foreign files made safe to print."""


class UserError(Exception):
    """A wrong file, shape, range, name or flag: one line that names what was found and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """


def printable(text, length=200):
    """The first characters of a text that others wrote, each unprintable one as "?", so that it cannot control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:length]) + ("…" if len(text) > length else "")
