"""`minddpm evaluate`: bits/dim of a trained model with their parts (Table 1), and the quality of its samples (Sec. 4)."""

import math
from pathlib import Path

import numpy as np

from minddpm import data
from minddpm.app.generate import BATCH, generate
from minddpm.app.metrics import frechet, nearest, pca, standard_error
from minddpm.app.progress import Progress
from minddpm.app.settings import prior_warning, read
from minddpm.errors import UserError
from minddpm.fast import parallel, workers_for
from minddpm.fast.device import choose as choose_device
from minddpm.fast.device import device_of, to_device, to_host
from minddpm.likelihood import Bound, normal, rate_distortion, reverse_term, vlb
from minddpm.random import rng
from minddpm.storage import files, load

TRAIN_SHARE = 10            # held-out images for each training image, whose bits take a tenth of the time
HELD_OUT, TRAIN, RELEASED = range(3)            # which noise of the bound: each part of the report has its own


def report(folder, n, name=None, bpd=False, json=None, seed=0, threads=None, device="auto"):
    """Table 1.  `minddpm evaluate`: print bits/dim and, unless bpd is true, sample quality; write them to a JSON file too.

    n: images of each kind.  name: the data set, see data_of.  json: the file, or None.  UserError: as load and data_of, or n < 2.
    """
    if n < 2:
        raise UserError(f"-n is {n}; expected at least 2")
    device = choose_device(device)
    model = load(folder, device)
    dataset, s = data_of(folder, model, name), model.schedule
    print(f"{folder}, {s.T} steps, σ_t² {model.sigma2}, on {dataset.name} ({dataset.levels} levels)")
    if warning := prior_warning(s):
        print(f"warning: {warning}")
    result = dict(data=dataset.name, levels=dataset.levels, image_shape=dataset.image_shape, T=s.T, seed=seed, **model.how)
    with workers_for(device, threads, BATCH) as workers:
        parts = [("bits_per_dim", table_1, bits_text), ("samples", sample_quality, quality_text)]
        for key, part, text in parts[:1] if bpd else parts:
            result[key] = part(model, dataset, n, seed, workers)
            print(text(result[key]), flush=True)
            if json:
                files.write_json(json, result)
    if json:
        print(f"wrote {Path(json).absolute()}")


def data_of(folder, model, name=None):
    """The data set to evaluate on: by its name or path, or else the one that the run in the folder was trained on.

    UserError: the folder is no run and no name is given, or the images do not fit the network or are too few.
    """
    if name is None:
        if not (Path(folder) / "settings.json").is_file():
            raise UserError(f"{folder} has no settings.json: expected --data NAME|PATH")
        name = read(folder).data
    dataset = data.load(name)
    fits = (model.config.image_size, model.config.image_size, model.config.in_channels)
    if dataset.image_shape != fits:
        raise UserError(f"data set {name} has {'x'.join(map(str, dataset.image_shape))} images; "
                        f"the model expects {'x'.join(map(str, fits))}")
    if min(len(dataset.train), len(dataset.held_out)) < 2:
        raise UserError(f"data set {name} has {len(dataset.train)} images to train on and {len(dataset.held_out)} held out; "
                        "expected at least 2 of each")
    return dataset


def choose(images, n, seed):
    """n of the images (all, if there are no more), chosen at random, as sets may be sorted by class."""
    return images[np.sort(rng("choice of images", seed).permutation(len(images))[:n])]


def table_1(model, dataset, n, seed, workers):
    """Table 1.  {"held_out": summary, "train": summary} of n held-out images and n / TRAIN_SHARE training images, at least 2.

    Where σ_1² is β_1, held_out has L_0 with the released code's variance too.
    """
    levels = dataset.levels
    images, train = choose(dataset.held_out, n, seed), choose(dataset.train, max(2, n // TRAIN_SHARE), seed)
    held_out = summary(bits_per_dim(model, images, levels, seed, workers, name="held out"))
    if model.sigma2 == "beta" and model.schedule.T > 1:
        held_out["distortion_released_code"] = float(released_distortion(model, images, levels, seed, workers).mean())
    return dict(held_out=held_out, train=summary(bits_per_dim(model, train, levels, seed, workers, TRAIN, "train")))


def bits_per_dim(model, images, levels, seed, workers, part=HELD_OUT, name="bits/dim"):
    """Table 1.  The Bound of images (N,H,W,C) uint8.  part: HELD_OUT, TRAIN or RELEASED noise.  name: of the progress bar."""
    s, output, bounds = model.schedule, parallel(model.output, workers), []
    with Progress(name, s.T * math.ceil(len(images) / BATCH), "term") as progress:
        for x0, random, text in _batches(model, images, levels, seed, part):
            bounds.append(vlb(s, output, x0, random, **model.how, levels=levels,
                              on_step=lambda t, text=text: progress.update(text)))
    return Bound(*(np.concatenate([to_host(a) for a in arrays]) for arrays in zip(*bounds, strict=True)))


def released_distortion(model, images, levels, seed, workers):
    """L_0 (N,), bits/dim, with σ_1² = β̃_2, the released code's for either σ_t² (diffusion_utils_2.py:139-146)."""
    s, output, L_0 = model.schedule, parallel(model.output, workers), []
    how = dict(model.how, levels=levels, decoder_var=float(s.beta_tilde[2]))
    for x0, random, _ in _batches(model, images, levels, seed, RELEASED):
        L_0.append(to_host(reverse_term(s, output, x0, 1, normal(random, x0), **how)[0]))
    return np.concatenate(L_0)


def _batches(model, images, levels, seed, part):
    """Yields (x_0 on the model's device, a generator for its noise, a text that names the images) of each batch."""
    device = device_of(model.params["conv_in"]["bias"])
    for k in range(0, len(images), BATCH):
        x0 = to_device(data.scale(images[k:k + BATCH], levels), device)
        yield x0, rng("bound", seed, k, part), f"images {k + 1}-{k + len(x0)} of {len(images)}"


def summary(bound):
    """The means over the images of a Bound, for JSON, with Table 4's columns at each t."""
    rate, rmse = rate_distortion(bound)
    return dict(images=len(bound.total), standard_error=standard_error(bound.total),
                **{name: float(getattr(bound, name).mean()) for name in ("total", "rate", "distortion", "L_T")},
                rmse=float(rmse[1]), L=bound.L.mean(0).tolist(), rate_at_t=rate.tolist(), rmse_at_t=rmse.tolist())


def bits_text(bits):
    """table_1's result as text."""
    lines = [f"{'bits/dim':9} {'images':>6}   {'total':>15}   rate L_1+…+L_T   distortion L_0       L_T"]
    for name, r in bits.items():
        total = f"{r['total']:.4f} ± {r['standard_error']:.4f}"
        lines.append(f"{name:9} {r['images']:6}   {total:>15}   {r['rate']:14.4f}   {r['distortion']:14.4f}"
                     f"   {r['L_T']:7.1e}")
    r = bits["held_out"]
    if (released := r.get("distortion_released_code")) is not None:
        lines.append("with the released code's σ_1² = β̃_2 for β_1, held out: "
                     f"L_0 {released:.4f}, total {r['rate'] + released:.4f}")
    return "\n".join([*lines, f"RMSE of x̂_0 at t = 1, held out: {r['rmse']:.2f} on [0, 255]"])


def sample_quality(model, dataset, n, seed, workers):
    """Sec. 4.  n samples beside n held-out images and n of noise (as many of each as are held out, if fewer) -> dict for JSON.

    Fréchet distances to the training set in the pixels' principal components, and distances to the nearest training image:
    samples of a model that has memorised its training images are nearer to them than held-out images are.
    """
    levels, real = dataset.levels, choose(dataset.held_out, n, seed)
    x0 = generate(model, len(real), seed, workers)
    noise = rng("images of noise", seed).standard_normal(x0.shape)
    train = data.scale(dataset.train, levels)
    sets = {name: data.scale(images, levels) for name, images in
            dict(samples=data.unscale(x0, levels), held_out=real, noise=data.unscale(noise, levels)).items()}
    features = pca(train)
    reference = features(train)
    distances = {name: 127.5 * nearest(x, train)[1] / x[0].size**0.5 for name, x in sets.items()}
    close = np.quantile(distances["held_out"], 0.01)
    return dict(
        images=len(real), components=reference.shape[1],
        frechet={name: frechet(features(x), reference) for name, x in sets.items()},
        nearest_rmse={name: float(np.median(d)) for name, d in distances.items()},
        closer_than_99_percent_of_held_out=float((distances["samples"] < close).mean()),
        copies=int((distances["samples"] == 0).sum()),
    )


def quality_text(q):
    """sample_quality's result as text."""
    names = dict(samples="samples", held_out="held-out images", noise="noise")
    share = 100 * q["closer_than_99_percent_of_held_out"]
    return "\n".join([
        f"\n{q['images']} images of each kind, against the training set",
        f"{'':17} {'Fréchet distance':>16}   {'nearest training image':>22}",
        *(f"{names[k]:17} {q['frechet'][k]:16.2f}   {q['nearest_rmse'][k]:22.2f}" for k in names),
        f"Fréchet distance: in {q['components']} principal components of the pixels in [-1, 1], so no FID; that of the",
        "held-out images is about the least for so few images.  Nearest training image: median of the RMSE on [0, 255].",
        f"Memorised?  {q['copies']} samples are copies of a training image, and {share:.1f} % are nearer to one than 99 % of the",
        "held-out images are."])
