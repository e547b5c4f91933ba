"""The whole method on one page:  python demos/minimal.py [--minutes M] [--out F.png]

Trains the smallest network on scikit-learn's 8×8 digits by Algorithm 1 and samples from it by Algorithm 2, with the paper's files
and a data set.  `minddpm demo` adds saving, progress and faster layers.
"""

import argparse
import time

import imageio.v3 as iio
import numpy as np

from minddpm.data import load
from minddpm.diffusion import Schedule, q_sample
from minddpm.objective import l_simple
from minddpm.optim import adam, ema
from minddpm.reverse import p_theta
from minddpm.tree import zeros_like
from minddpm.unet import UNetConfig, init, unet

T, BATCH, LR = 1000, 32, 2e-3


def train(cfg, s, minutes, rng):
    """Alg. 1.  Train for some minutes -> the moving average of the weights."""
    params, digits = init(cfg, seed=0), load("digits")
    m, v, average = zeros_like(params), zeros_like(params), zeros_like(params)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:                                                             # 1: repeat
        step += 1
        x0 = digits.batch(BATCH, step, seed=0)                                  # 2: x_0 ~ q(x_0)
        t = rng.integers(1, T, size=BATCH, endpoint=True)                       # 3: t ~ Uniform({1, …, T})
        eps = rng.standard_normal(x0.shape, dtype=np.float32)                   # 4: ε ~ N(0, I)
        eps_theta, unet_back = unet(cfg, params, q_sample(s, x0, t, eps), t)    # 5: gradient descent step on
        loss, loss_back = l_simple(eps, eps_theta)                              #    ∇_θ ‖ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t)‖²
        _, gradient = unet_back(loss_back(np.full_like(loss, 1 / BATCH)))
        done = (time.monotonic() - start) / (60 * minutes)
        lr = LR * (1 + np.cos(np.pi * min(1, done))) / 2                        #    half a cosine, to 0
        adam(params, m, v, gradient, step, lr)
        ema(average, params, step, decay=0.995)
        if step % 100 == 0 or done >= 1:
            print(f"step {step}  loss {loss.mean():.4f}  {100 * min(1, done):.0f} %")
    return average                                                              # 6: until converged


def sample(cfg, s, params, n, rng):
    """Alg. 2.  n images x_0 (n,8,8,1) in [−1, 1]."""
    x_t = rng.standard_normal((n, 8, 8, 1), dtype=np.float32)                   # 1: x_T ~ N(0, I)
    for t in range(T, 0, -1):                                                   # 2: for t = T, …, 1 do
        z = rng.standard_normal(x_t.shape, dtype=np.float32) if t > 1 else 0    # 3: z ~ N(0, I) if t > 1, else z = 0
        eps_theta, _ = unet(cfg, params, x_t, t)
        p = p_theta(s, x_t, t, eps_theta)                                       #    μ_θ and σ_t², x̂_0 clipped
        x_t = p.mean + p.var**0.5 * z                                           # 4: x_{t−1} = μ_θ(x_t, t) + σ_t z
    return x_t                                                                  # 6: return x_0


def picture(x0, columns=10, zoom=8):
    """(n,8,8,1) in [−1, 1] -> a grid of the images, uint8."""
    grey = np.pad((255 * (np.clip(x0[..., 0], -1, 1) + 1) / 2).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    rows = grey.reshape(-1, columns, *grey.shape[1:]).swapaxes(1, 2).reshape(-1, columns * grey.shape[2])
    return rows.repeat(zoom, axis=0).repeat(zoom, axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.5, help="how long to train (default: %(default)s)")
    parser.add_argument("--out", default="minimal.png", help="the picture (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="train for a second, to see that it runs")
    args = parser.parse_args()
    cfg, s, rng = UNetConfig.tiny(), Schedule.linear(T), np.random.default_rng(0)
    params = train(cfg, s, 1 / 60 if args.smoke else args.minutes, rng)
    iio.imwrite(args.out, picture(sample(cfg, s, params, 40, rng)))
    print(f"wrote {args.out}")
