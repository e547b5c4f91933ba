"""Fig. 5, Table 4, Sec. 4.3.  Rate and distortion of held-out images over the reverse process, and one against the other.

    python demos/fig5_rate_distortion.py [--run runs/demo] [--out fig5_rate_distortion.png] [-n 64]

The receiver of Alg. 4 has received L_t + … + L_T bits at x_t and estimates x_0 by Eq. (15).  Table 4's rows are printed beside
the paper's, which are for CIFAR10: compare the shape, not the numbers.
"""

import common

from minddpm.app.evaluate import bits_per_dim, choose
from minddpm.app.metrics import standard_error
from minddpm.likelihood import rate_distortion

# Table 4: reverse steps T − t + 1, rate in bits/dim, RMSE on [0, 255]; T = 1000.
TABLE_4 = [(1000, 1.77581, 0.95136), (900, 0.11994, 12.02277), (800, 0.05415, 18.47482), (700, 0.02866, 24.43656),
           (600, 0.01507, 30.80948), (500, 0.00716, 38.03236), (400, 0.00282, 46.12765), (300, 0.00081, 54.18826),
           (200, 0.00013, 60.97170), (100, 0.00000, 67.60125)]


def main(argv=None):
    """The three panels as a picture, and the table in the terminal."""
    args = common.parser(__doc__, "fig5_rate_distortion.png", n=64, smoke_n=8, images="held-out images").parse_args(argv)
    axes, save = common.figure()
    with common.trained(args) as run:
        model, dataset = run.model, run.dataset
        images = choose(dataset.held_out, run.n, args.seed)
        bound = bits_per_dim(model, images, dataset.levels, args.seed, run.workers, name="bound")
    rate, rmse = rate_distortion(bound)
    error = f" ± {standard_error(bound.total):.3f}" if len(images) > 1 else ""
    summary = (f"{len(images)} held-out images of {dataset.name}: {bound.total.mean():.3f}{error} bits/dim = "
               f"rate {rate[1]:.3f} + distortion {bound.distortion.mean():.3f}, RMSE {rmse[1]:.2f}")
    print(f"{table(model.schedule.T, rate, rmse)}\n{summary}; the paper's: 3.75 = 1.78 + 1.97, RMSE 0.95")
    plot(axes, rate, rmse, summary)
    save(args.out)


def table(T, rate, rmse):
    """Table 4 as text: ten rows at equal distances, with the paper's on the right."""
    lines = [f"{'steps T−t+1':>12} {'rate':>9} {'RMSE':>9}     paper, CIFAR10: {'steps':>5} {'rate':>9} {'RMSE':>9}"]
    for steps, paper_rate, paper_rmse in TABLE_4:
        ours = max(1, round(T * steps / 1000))
        t = T - ours + 1
        lines.append(f"{ours:12} {rate[t]:9.5f} {rmse[t]:9.5f}                     {steps:5} {paper_rate:9.5f} {paper_rmse:9.5f}")
    return "\n".join(lines)


def plot(axes, rate, rmse, title):
    """Distortion and rate over T − t for t = T, …, 1, and distortion over rate."""
    paper, T = axes.figure, len(rate) - 1
    axes.remove()
    paper.set_size_inches(12, 3.8)
    steps, rate, rmse = range(T), rate[:0:-1], rmse[:0:-1]
    over_time, rate_over_time, curve = paper.subplots(1, 3)
    over_time.plot(steps, rmse)
    over_time.set(xlabel="reverse process steps T − t", ylabel="distortion: RMSE on [0, 255]")
    rate_over_time.plot(steps, rate)
    rate_over_time.set(xlabel="reverse process steps T − t", ylabel="rate: bits/dim sent so far")
    curve.plot(rate, rmse)
    curve.set(xlabel="rate: bits/dim sent so far", ylabel="distortion: RMSE on [0, 255]")
    for panel in over_time, rate_over_time, curve:
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    for panel in over_time, rate_over_time:
        panel.xaxis.get_major_locator().set_params(integer=True)
    paper.suptitle(title, fontsize="medium")


if __name__ == "__main__":
    common.start(main)
