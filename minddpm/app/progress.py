"""Progress of long work: a bar on a terminal, plain lines in a file or a pipe."""

import os
import sys
import time

from tqdm import tqdm

SECONDS = 10                # between two plain lines


class Progress:
    """`with Progress("train", total, "step") as progress: progress.update("loss 0.05")` after each unit of work.

    done: how many of the total units were done before.  images: how many images a unit processes; images/s are shown if not 0.
    """

    def __init__(self, name, total, unit, done=0, images=0):
        self.name, self.total, self.unit, self.done, self.images = name, total, unit, done, images
        self.first, self.bar = done, None

    def __enter__(self):
        self.start = self.last_line = time.monotonic()
        if sys.stdout.isatty():
            size = dict(dynamic_ncols=True) if _has_size(sys.stdout) else dict(ncols=80, nrows=24)
            self.bar = tqdm(total=self.total, initial=self.done, desc=self.name, unit=self.unit, file=sys.stdout, **size)
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def update(self, text=""):
        """Count one more unit of work, and show the text beside it."""
        self.done += 1
        if self.images:
            text = f"{text}  {self.rate:.0f} images/s".strip()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        elif self.done == self.total or time.monotonic() - self.last_line >= SECONDS:
            self.last_line = time.monotonic()
            left = (self.total - self.done) * (self.last_line - self.start) / max(1, self.done - self.first)
            print(f"{self.name}  {self.unit} {self.done}/{self.total}  {text}  ETA {clock(left)}", flush=True)

    def say(self, text):
        """Print a line, above the bar if there is one."""
        tqdm.write(text)
        sys.stdout.flush()

    @property
    def rate(self):
        """Images a second, since the start of this session."""
        return (self.done - self.first) * self.images / max(1e-9, time.monotonic() - self.start)


def _has_size(terminal):
    """Whether a terminal reports its width: in containers and on serial lines it may be 0, for which tqdm draws nothing."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns > 0
    except OSError:
        return False


def clock(seconds):
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
