"""The loop around Algorithm 1: log, saves, pictures, progress, and a stop by Ctrl-C or SIGTERM after the step at hand."""

import signal
import threading
from contextlib import contextmanager

from minddpm.app.generate import generate
from minddpm.app.pictures import grid, save_png, to_uint8
from minddpm.app.progress import Progress
from minddpm.app.run import append_log, save_run
from minddpm.errors import UserError
from minddpm.fast import workers_for
from minddpm.fast.device import is_out_of_memory, out_of_memory
from minddpm.fast.training import gradient_by, update_by
from minddpm.train import train as training_steps

LOG_EVERY = 10              # steps
PICTURE = 16                # samples


def train(run):
    """Alg. 1.  Train until settings.steps and save: True when it got there, False when Ctrl-C or SIGTERM stopped it.

    UserError: a loss that is not finite, no more memory, or a file that cannot be written.  What was saved before stays, and the
    message names the step of that state.  A picture that cannot be made is only a warning.
    """
    settings = run.settings
    try:
        with out_of_memory(f"training with --batch {settings.batch}", "try a smaller --batch or --memory checkpoint"), \
                workers_for(run.device, settings.threads, settings.batch) as workers, _stop_signals() as stopped, \
                Progress("train", settings.steps, "step", run.state.step, settings.batch) as progress:
            _train(run, workers, stopped, progress)
    except UserError as e:
        kept = f"the state of step {run.kept} is kept in {run.folder}" if run.kept else "nothing had been saved yet"
        raise UserError(f"{e}; {kept}") from e
    return run.state.step >= settings.steps


def _train(run, workers, stopped, progress):
    """The loop of `train`.  A GPU is waited for only at the steps whose losses are needed: for a log row, save or picture."""
    settings, unread = run.settings, []
    if run.state.step == settings.steps:
        save_run(run)                                           # it may have been killed between the state and the model
    for metrics in training_steps(settings, run.config, settings.schedule(), run.state, run.dataset,
                                  gradient_by(workers, settings.policy), update_by(workers)):
        unread.append(metrics)
        step, stop = metrics.step, stopped.is_set()
        log, picture = _due(step, LOG_EVERY), _due(step, settings.sample_every)
        save = _due(step, settings.save_every) or stop or step == settings.steps
        if not (log or picture or save or run.device == "cpu"):
            progress.update()
            continue
        metrics = _read(run, unread, progress)
        if log:
            append_log(run, metrics, progress.rate)
        if save:
            save_run(run)
        if picture:
            _picture(run, workers, progress)
        if stop:
            return


def _due(step, every):
    return every > 0 and step % every == 0


def _read(run, unread, progress):
    """Move the losses of the unread Metrics to run.losses -> the last Metrics, as floats.  UserError: one is not finite."""
    read = [metrics.checked() for metrics in unread]
    unread.clear()
    run.losses += [metrics.loss for metrics in read]
    last = read[-1]
    progress.update(f"loss {last.loss:.4f}  grad norm {last.grad_norm:.3f}  lr {last.lr:.1e}")
    return last


def _picture(run, workers, progress):
    try:
        x0 = generate(run.model, PICTURE, run.settings.seed, workers)
        save_png(run.folder / "samples" / f"step_{run.state.step:07}.png", grid(to_uint8(x0)))
    except Exception as e:
        if not isinstance(e, OSError | UserError) and not is_out_of_memory(e):
            raise
        progress.say(f"warning: no picture of step {run.state.step}: {e}; the training goes on")


@contextmanager
def _stop_signals():
    """A threading.Event that the first Ctrl-C or SIGTERM sets; a second one interrupts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number, frame):
        stopped.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
