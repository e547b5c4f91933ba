"""What `minddpm evaluate` measures on a trained model: bits/dim with their parts (Table 1), and its samples (Sec. 4)."""

from pathlib import Path

import numpy as np

from minddpm import data
from minddpm import device as backend
from minddpm.app import settings
from minddpm.app.generate import generate
from minddpm.app.metrics import frechet, nearest, pca
from minddpm.app.progress import Progress
from minddpm.app.run import workers_for
from minddpm.errors import UserError
from minddpm.likelihood import Bound, Estimate, prior_warning, rate_distortion, reverse_term, standard_error, vlb, vlb_estimate
from minddpm.sample import in_parallel
from minddpm.storage import files, load

BATCH = 64                  # images at a time
TRAIN_TERMS = 50            # reverse terms of the training set's estimate: a twentieth of the paper's 1000, and of the time


def report(folder, n, name=None, bpd=False, json=None, seed=0, threads=None, device="auto"):
    """Table 1.  `minddpm evaluate`: print what `evaluate` finds, and write it to a JSON file if one is named.

    n: images of each kind.  name: the data set, see data_of.  bpd: bits/dim only.  UserError: as load and data_of, or n < 2.
    """
    if n < 2:
        raise UserError(f"-n is {n}; expected at least 2")
    device = backend.choose(device)
    model = load(folder, device)
    dataset = data_of(folder, model, name)
    print(f"{folder}, {model.schedule.T} steps, σ_t² {model.sigma2}, on {dataset.name} ({dataset.levels} levels)")
    with workers_for(settings.Settings(threads=threads, batch=BATCH), device) as workers:
        for text, result in evaluate(model, dataset, n, seed, workers, device, samples=not bpd):
            print(text, flush=True)
            if json:
                files.write_json(json, result)
    if json:
        print(f"wrote {Path(json).absolute()}")


def evaluate(model, dataset, n, seed, workers, device="cpu", samples=True):
    """Table 1, Sec. 4.  Yields (text to print, all results so far as a dict for JSON) whenever there is something to say.

    First bits/dim: all T terms for n held-out images, and an estimate from TRAIN_TERMS of them for n training images, as
    precise as so few images allow; then, if samples is true, sample_quality.
    """
    s, levels, bits = model.schedule, dataset.levels, {}
    result = dict(data=dataset.name, levels=levels, image_shape=dataset.image_shape, T=s.T, seed=seed, sigma2=model.sigma2,
                  clip=model.clip, predicts=model.predicts, bits_per_dim=bits)
    if warning := prior_warning(s):
        yield f"warning: {warning}", result
    held_out, train = choose(dataset.held_out, n, seed), choose(dataset.train, n, seed)
    bound = bits_per_dim(model, held_out, levels, seed, workers, device, "held out")
    bits["held_out"] = summary(bound, s.T)
    estimate = bits_per_dim(model, train, levels, seed, workers, device, "train", TRAIN_TERMS)
    bits["train"] = summary(estimate, min(TRAIN_TERMS, s.T))
    text = bits_text(bits)
    if model.sigma2 == "beta" and s.T > 1:
        released = float(released_distortion(model, held_out, levels, seed, workers, device).mean())
        bits["held_out"]["distortion_released_code"] = released
        text += (f"\nwith the released code's σ_1² = β̃_2 for β_1, held out: L_0 {released:.4f}, "
                 f"total {bound.rate.mean() + released:.4f}")
    yield f"{text}\nRMSE of x̂_0 at t = 1, held out: {bits['held_out']['rmse']:.2f} on [0, 255]", result
    if samples:
        result["samples"] = sample_quality(model, dataset, n, seed, workers, device)
        yield "\n" + quality_text(result["samples"]), result


def data_of(folder, model, name=None):
    """The data set to evaluate on: by its name or path, or else the one that the run in the folder was trained on.

    UserError: the folder is no run and no name is given, or the images do not fit the network or are too few.
    """
    if name is None:
        if not (Path(folder) / "settings.json").is_file():
            raise UserError(f"{folder} does not say which data it was trained on; expected --data NAME|PATH")
        name = settings.read(folder).data
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
    return images[np.sort(np.random.default_rng(seed).permutation(len(images))[:n])]


def bits_per_dim(model, images, levels, seed, workers, device="cpu", name="bits/dim", terms=None):
    """Table 1.  The bound on images (N,H,W,C) uint8 -> Bound of all T terms, or for `terms` of them an Estimate."""
    s, parts = model.schedule, []
    how = dict(sigma2=model.sigma2, clip=model.clip, predicts=model.predicts, levels=levels)
    eps_theta, starts = in_parallel(model.eps_theta, workers), range(0, len(images), BATCH)
    with Progress(name, min(terms or s.T, s.T) * len(starts), "term") as progress:
        for k in starts:
            x0 = backend.to_device(data.scale(images[k:k + BATCH], levels), device)
            text, rng = f"images {k + 1}-{k + len(x0)} of {len(images)}", np.random.default_rng([seed, k])
            how["on_step"] = lambda t, text=text: progress.update(text)
            parts.append(vlb_estimate(s, eps_theta, x0, rng, terms, **how) if terms else vlb(s, eps_theta, x0, rng, **how))
    return (Estimate if terms else Bound)(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def released_distortion(model, images, levels, seed, workers, device="cpu"):
    """L_0 (N,), bits/dim, with σ_1² = β̃_2, the released code's for either σ_t² (diffusion_utils_2.py:139-146)."""
    eps_theta, L_0 = in_parallel(model.eps_theta, workers), []
    for k in range(0, len(images), BATCH):
        x0 = backend.to_device(data.scale(images[k:k + BATCH], levels), device)
        eps = np.asarray(np.random.default_rng([seed, k, 1]).standard_normal(x0.shape), like=x0)
        L_0.append(backend.to_host(reverse_term(model.schedule, eps_theta, x0, 1, eps, model.sigma2, model.clip, model.predicts,
                                                levels, decoder_var=float(model.schedule.beta_tilde[2]))[0]))
    return np.concatenate(L_0)


def summary(bound, terms):
    """A Bound or an Estimate -> its means over the images, for JSON; of a Bound also Table 4's columns at each t."""
    parts = dict(images=len(bound.total), terms=terms, total=bound.total, standard_error=standard_error(bound.total),
                 rate=bound.rate, distortion=bound.distortion, L_T=bound.L_T)
    parts = {name: float(np.mean(a)) if isinstance(a, np.ndarray) else a for name, a in parts.items()}
    if isinstance(bound, Bound):
        rate, rmse = rate_distortion(bound)
        parts |= dict(rmse=float(rmse[1]), L=bound.L.mean(0).tolist(), rate_at_t=rate.tolist(), rmse_at_t=rmse.tolist())
    return parts


def sample_quality(model, dataset, n, seed, workers, device="cpu"):
    """Sec. 4.  n samples beside n held-out images and n of noise (as many of each as are held out, if fewer) -> dict for JSON.

    Fréchet distances to the training set in the pixels' principal components, and distances to the nearest training image:
    a model that has learnt its training images by heart draws samples nearer to them than held-out images are.
    """
    levels, rng = dataset.levels, np.random.default_rng([seed, 1])
    real = choose(dataset.held_out, n, seed)
    x0 = generate(model, len(real), seed, workers, device=device)
    noise = rng.standard_normal(x0.shape)
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


def bits_text(rows):
    """{name: summary} -> the table that is printed."""
    lines = [f"{'bits/dim':9} {'images':>6} {'terms':>5}   {'total':>15}   rate L_1+…+L_T   distortion L_0       L_T"]
    for name, r in rows.items():
        total = f"{r['total']:.4f} ± {r['standard_error']:.4f}"
        lines.append(f"{name:9} {r['images']:6} {r['terms']:5}   {total:>15}   {r['rate']:14.4f}   {r['distortion']:14.4f}"
                     f"   {r['L_T']:7.1e}")
    return "\n".join(lines)


def quality_text(q):
    """sample_quality's result -> the text that is printed."""
    names = dict(samples="samples", held_out="held-out images", noise="noise")
    lines = [f"{q['images']} images of each kind, against the training set",
             f"{'':17} {'Fréchet distance':>16}   {'nearest training image':>22}"]
    lines += [f"{names[k]:17} {q['frechet'][k]:16.2f}   {q['nearest_rmse'][k]:22.2f}" for k in names]
    share = 100 * q["closer_than_99_percent_of_held_out"]
    return "\n".join([
        *lines,
        f"Fréchet distance: of {q['components']} principal components of the pixels in [-1, 1], so no FID; the held-out images",
        "show how near to 0 so few images can come.  Nearest training image: median of the RMSE on [0, 255].",
        f"Learnt by heart?  {q['copies']} samples are copies of a training image, and {share:.1f} % are nearer to one than 99 %",
        "of the held-out images are."])
