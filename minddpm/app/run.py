"""A training run and its folder: begin, save, resume, and the loop around Algorithm 1.

    runs/NAME/
        model_index.json, unet/, scheduler/     the model with EMA weights, a diffusers pipeline folder
        training_state.safetensors              weights, Adam's moments and EMA as they were after `step` steps
        settings.json                           everything that the run was told
        log.csv                                 loss, gradient norm and learning rate of every tenth step, and the speed
        samples/                                pictures made while training, each of the same noise
"""

import contextlib
import csv
import io
import shlex
import signal
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from minddpm import device as backend
from minddpm import tree
from minddpm.app import settings
from minddpm.app.fitting import proposing
from minddpm.app.generate import save_picture
from minddpm.app.progress import Progress
from minddpm.data import BUILT_IN, Dataset, load
from minddpm.errors import UserError
from minddpm.fast.prefetch import ahead
from minddpm.fast.workers import Workers
from minddpm.likelihood import prior_warning
from minddpm.model import Model
from minddpm.objective import OBJECTIVES
from minddpm.storage import files, save
from minddpm.storage import weights as checkpoint
from minddpm.train import TrainingState, draw, place, told_gradient, train_step
from minddpm.unet import init

LOG_EVERY = 10
LOG_COLUMNS = ("step", "loss", "grad_norm", "lr", "images_per_s")
STATE = "training_state.safetensors"


@dataclass
class Run:
    """A run's folder, settings (resolved for its data), data set, device, state, and losses that log.csv has not seen yet.

    kept: the step of the state in the folder, 0 if there is none.
    """

    folder: Path
    settings: settings.Settings
    dataset: Dataset
    device: str
    state: TrainingState
    losses: list[float] = field(default_factory=list)
    kept: int = 0

    @property
    def config(self):
        """The network's sizes."""
        return self.settings.config(self.dataset.image_shape[2])

    @property
    def model(self):
        """The model as it is now, with the EMA weights."""
        predicts = OBJECTIVES[self.settings.objective].predicts
        return Model(self.config, self.state.ema, self.settings.schedule(), self.settings.sigma2, predicts=predicts)


def begin(folder, wanted):
    """A new run in a folder of its own; warns of a schedule that leaves x_0 in x_T.

    UserError: bad data or settings, or the folder is not empty or not writable.
    """
    folder = Path(folder).absolute()
    if folder.is_dir():
        files.sweep(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --out, or go on with the run in it: "
                        f"minddpm train --resume {shlex.quote(str(folder))}")
    dataset, wanted, device = prepare(wanted)
    if warning := prior_warning(wanted.schedule()):
        print(f"warning: {warning}")
    files.write_json(folder / "settings.json", asdict(wanted))
    return Run(folder, wanted, resident(dataset, device), device, _new_state(wanted, dataset, device))


def resume(folder, steps=None):
    """The run in a folder, as it was last saved; steps: another number of steps to train for in all.

    A run that was stopped before its first save begins again.  UserError: no run there, a damaged one, or too few steps.
    """
    folder = Path(folder).absolute()
    told = settings.read(folder)
    dataset, told, device = prepare(told if steps is None else replace(told, steps=steps))
    state, losses = _new_state(told, dataset, device), []
    if (folder / STATE).exists():
        state, losses = _read_state(folder / STATE, state, device)
    if steps is not None:
        if steps < state.step:
            raise UserError(f"steps is {steps}, but the run in {folder} has done {state.step}; expected at least as many")
        files.write_json(folder / "settings.json", asdict(told))
    files.sweep(folder)
    _cut_log(folder / "log.csv", state.step)
    return Run(folder, told, resident(dataset, device), device, state, losses, kept=state.step)


def save_run(run):
    """The state first, then the model: a run killed between the two resumes from the newer state."""
    state = run.state
    trees = {"params": state.params, "m": state.m, "v": state.v, "ema": state.ema}
    checkpoint.write(run.folder / STATE, trees, {"step": " ".join(map(repr, [state.step, *run.losses]))})
    run.kept = state.step
    save(run.folder, run.model)


def train(run):
    """Alg. 1.  Train until settings.steps; True when it got there, False when Ctrl-C or SIGTERM stopped it.

    Either way the run is saved.  UserError: a loss that is not finite, a full memory, or a file that cannot be written; what was
    saved before stays, and the text says which step's it is.  A picture that cannot be made is a warning and no more.
    A GPU is not waited for at each step: its losses are read, and looked at, every LOG_EVERY steps and before each save.
    """
    try:
        _train(run)
    except UserError as e:
        kept = f"the state of step {run.kept} is kept in {run.folder}" if run.kept else "nothing had been saved yet"
        raise UserError(f"{e}; {kept}") from e
    return run.state.step >= run.settings.steps


def _train(run):
    told, state, s, cfg, levels = run.settings, run.state, run.settings.schedule(), run.config, run.dataset.levels
    losses, saved = run.losses, None                            # saved: the step of this session's last save
    unread, every = {}, [1 if run.device == "cpu" else LOG_EVERY, told.save_every, told.sample_every, told.steps]
    draws = ahead(lambda step: draw(told, run.dataset, step), range(state.step + 1, told.steps + 1))
    with _stop_signals() as stopped, workers_for(told, run.device) as workers, contextlib.closing(draws), \
            Progress("train", told.steps, "step", state.step, told.batch) as progress:
        stop = stopped.is_set()
        while state.step < told.steps and not stop:
            batch = place(next(draws), told, run.dataset, run.device)
            unread[state.step] = proposing(
                lambda batch=batch: train_step(told, cfg, s, state, batch, workers, levels), told.batch,
                lambda images, batch=batch: told_gradient(told, cfg, s, state.params, batch.part(slice(images)), workers, levels),
                run.device, "training")
            stop = stopped.is_set()
            if not stop and not any(n and state.step % n == 0 for n in every):
                progress.update()
                continue
            read = [metrics.read(step) for step, metrics in unread.items()]
            losses += [metrics.loss for metrics in read]
            metrics = read[-1]
            unread.clear()
            progress.update(f"loss {metrics.loss:.4f}  grad norm {metrics.grad_norm:.3f}  lr {metrics.lr:.1e}")
            if state.step % LOG_EVERY == 0:
                mean = sum(losses) / len(losses)
                losses.clear()
                _log(run.folder / "log.csv", [state.step, f"{mean:.6f}", f"{metrics.grad_norm:.6f}", f"{metrics.lr:.6g}",
                                              f"{progress.rate:.1f}"])
            if told.save_every and state.step % told.save_every == 0:
                save_run(run)
                saved = state.step
            if told.sample_every and state.step % told.sample_every == 0:
                _picture(run, workers, progress)
    if saved != state.step:                     # also where nothing was left to do: the run may have been killed in the last save
        save_run(run)


def workers_for(told, device):
    """One worker a CPU unless settings.threads says otherwise; a GPU takes the batch whole from one thread."""
    if device == "cuda":
        return Workers(1, part=told.batch)
    return Workers(told.threads or backend.cpu_count())


def prepare(wanted):
    """Settings -> data set, settings resolved for it, device.  UserError: bad data or settings, or no such device."""
    dataset = load(wanted.data)
    wanted = wanted.resolved(dataset.image_shape)
    if wanted.data not in BUILT_IN:
        wanted = replace(wanted, data=str(Path(wanted.data).expanduser().absolute()))       # it resumes from any folder
    wanted.schedule()
    if wanted.batch > len(dataset.train):
        raise UserError(f"batch {wanted.batch} is larger than the training set of {len(dataset.train)} images")
    return dataset, wanted, backend.choose(wanted.device)


def resident(dataset, device):
    """The data set with its training images, as bytes, on the GPU, if they take less than half of its free memory."""
    if device == "cpu" or 2 * dataset.train.nbytes > backend.free_bytes():
        return dataset
    return replace(dataset, train=backend.to_device(dataset.train, device))


def _new_state(told, dataset, device):
    params = init(told.config(dataset.image_shape[2]), told.seed)
    return TrainingState.begin(tree.map(lambda a: backend.to_device(a, device), params))


def _read_state(path, like, device):
    shapes = tree.map(lambda a: a.shape, like.params)
    trees, metadata = checkpoint.read(path, {name: shapes for name in ("params", "m", "v", "ema")})
    try:
        step, *losses = metadata["step"].split()
        step, losses = int(step), [float(loss) for loss in losses]
        if step < 0:
            raise ValueError(step)
    except (KeyError, ValueError) as e:
        raise UserError(f"{path} does not say which step it is of; expected a file that minddpm train wrote") from e
    trees = tree.map(lambda a: backend.to_device(a, device), trees)
    return TrainingState(step, trees["params"], trees["m"], trees["v"], trees["ema"]), losses


@contextlib.contextmanager
def _stop_signals():
    """An event that the first Ctrl-C or SIGTERM sets, so that the step at hand is finished; a second one interrupts it."""
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


def _picture(run, workers, progress):
    try:
        save_picture(run.folder / "samples" / f"step_{run.state.step:07}.png", run.model, 16, run.settings.seed, workers)
    except Exception as e:
        if not isinstance(e, OSError | UserError) and not backend.is_out_of_memory(e):
            raise
        progress.say(f"warning: no picture of step {run.state.step}: {e}; the training goes on")


def _log(path, row):
    try:
        with open(path, "a", newline="") as f:
            csv.writer(f).writerows([row] if f.tell() else [LOG_COLUMNS, row])
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror}") from e


def _cut_log(path, step):
    """Drop the rows of steps after the last save, which are about to be done again, and a row that was cut short."""
    if not path.exists():
        return
    with open(path, newline="", errors="replace") as f:
        rows = [row for row in csv.reader(f) if len(row) == len(LOG_COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
    text = io.StringIO()
    csv.writer(text).writerows([LOG_COLUMNS, *rows])
    files.write(path, text.getvalue().encode())
