"""A training run and its folder: begin, save, resume.

    runs/NAME/
        model_index.json, unet/, scheduler/     the model with EMA weights, a diffusers pipeline folder
        training_state.safetensors              weights, Adam's moments and EMA after `step` steps
        settings.json                           all settings
        log.csv                                 loss, gradient norm and learning rate of every tenth step, and the speed
        samples/                                pictures made while training, each of the same noise
"""

import csv
import io
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from minddpm import tree
from minddpm.app.settings import Settings, prior_warning, read
from minddpm.data import BUILT_IN, Dataset, load
from minddpm.errors import UserError
from minddpm.fast import ops_for
from minddpm.fast.device import choose, free_bytes, to_device
from minddpm.model import Model
from minddpm.objective import OBJECTIVES
from minddpm.storage import files, save, weights
from minddpm.train import TrainingState
from minddpm.unet import init

STATE = "training_state.safetensors"
LOG_COLUMNS = ("step", "loss", "grad_norm", "lr", "images_per_s")


@dataclass
class Run:
    """A run: its folder, settings (resolved for its data), data set, device and state.

    losses: those of the last steps, which have no row in log.csv yet.  kept: the step of the state in the folder, 0 for none.
    """

    folder: Path
    settings: Settings
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
        """The model as it is now, with the EMA weights.  It must not be used after another training step."""
        return Model(self.config, self.state.ema, self.settings.schedule(), self.settings.sigma2,
                     predicts=OBJECTIVES[self.settings.objective].predicts,
                     ops=ops_for(self.state.ema, self.config.image_size))


def begin(folder, requested):
    """A new Run in a folder of its own, with the requested Settings; prints a warning if the schedule leaves x_0 in x_T.

    UserError: bad data or settings, or the folder is not empty or not writable.
    """
    folder = Path(folder).absolute()
    if folder.is_dir():
        files.sweep(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --out, or go on with the run in it: "
                        f"minddpm train --resume {shlex.quote(str(folder))}")
    settings, dataset, device = prepare(requested)
    if warning := prior_warning(settings.schedule()):
        print(f"warning: {warning}")
    files.write_json(folder / "settings.json", asdict(settings))
    return Run(folder, settings, dataset, device, new_state(settings, dataset, device))


def resume(folder, steps=None):
    """The Run in a folder, as it was last saved; steps: another number of steps to train for in all.

    A run that was stopped before its first save begins again.  UserError: no run there, a damaged one, or too few steps.
    """
    folder = Path(folder).absolute()
    saved = read(folder)
    settings, dataset, device = prepare(saved if steps is None else replace(saved, steps=steps))
    state, losses = new_state(settings, dataset, device), []
    if (folder / STATE).exists():
        state, losses = _read_state(folder / STATE, state, device)
    if steps is not None:
        if steps < state.step:
            raise UserError(f"steps is {steps}, but the run in {folder} has done {state.step}; expected at least as many")
        files.write_json(folder / "settings.json", asdict(settings))
    files.sweep(folder)
    _cut_log(folder / "log.csv", state.step)
    return Run(folder, settings, dataset, device, state, losses, kept=state.step)


def prepare(requested):
    """Settings -> (the settings resolved for their data set, the Dataset, the device to compute on).

    The training images are put on a GPU if they take less than half of its free memory.
    UserError: bad data or settings, or no such device.
    """
    dataset = load(requested.data)
    settings = requested.resolved(dataset.image_shape)
    if settings.data not in BUILT_IN:                                           # so that it resumes from any current folder
        settings = replace(settings, data=str(Path(settings.data).expanduser().absolute()))
    settings.schedule()                                                         # raises UserError for bad β
    if settings.batch > len(dataset.train):
        raise UserError(f"batch {settings.batch} is larger than the training set of {len(dataset.train)} images")
    device = choose(settings.device)
    if device == "cuda" and 2 * dataset.train.nbytes <= free_bytes():
        dataset = replace(dataset, train=to_device(dataset.train, device))
    return settings, dataset, device


def new_state(settings, dataset, device):
    """The TrainingState before the first step, on the device."""
    params = init(settings.config(dataset.image_shape[2]), settings.seed)
    return TrainingState.begin(tree.map(lambda a: to_device(a, device), params))


def save_run(run):
    """Write the state, then the model: a run killed between the two resumes from the newer state.  UserError: not writable."""
    state = run.state
    trees = {"params": state.params, "m": state.m, "v": state.v, "ema": state.ema}
    weights.write(run.folder / STATE, trees, {"step": str(state.step), "losses": " ".join(map(repr, run.losses))})
    run.kept = state.step
    save(run.folder, run.model)


def _read_state(path, like, device):
    """(TrainingState, losses) in a file written by `save_run`, with the shapes of the state `like`."""
    shapes = tree.map(lambda a: a.shape, like.params)
    trees, metadata = weights.read(path, {name: shapes for name in ("params", "m", "v", "ema")})
    try:
        step, *losses = [*metadata["step"].split(), *metadata.get("losses", "").split()]     # older files: all in "step"
        step, losses = int(step), [float(loss) for loss in losses]
        if step < 0:
            raise ValueError(step)
    except (KeyError, ValueError) as e:
        raise UserError(f"{path} has no valid step; expected a file that minddpm train wrote") from e
    return TrainingState(step, **tree.map(lambda a: to_device(a, device), trees)), losses


def append_log(run, metrics, images_per_s):
    """Write a row of log.csv with the mean of run.losses, and forget these.  UserError: it cannot be written."""
    path, loss = run.folder / "log.csv", sum(run.losses) / len(run.losses)
    run.losses.clear()
    row = [metrics.step, f"{loss:.6f}", f"{metrics.grad_norm:.6f}", f"{metrics.lr:.6g}", f"{images_per_s:.1f}"]
    try:
        with open(path, "a", newline="") as f:
            csv.writer(f).writerows([row] if f.tell() else [LOG_COLUMNS, row])
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror}") from e


def _cut_log(path, step):
    """Remove the rows of steps after `step`, which will be done again, and rows that were cut short."""
    if not path.exists():
        return
    with open(path, newline="", errors="replace") as f:
        rows = [row for row in csv.reader(f) if len(row) == len(LOG_COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
    text = io.StringIO()
    csv.writer(text).writerows([LOG_COLUMNS, *rows])
    files.write(path, text.getvalue().encode())
