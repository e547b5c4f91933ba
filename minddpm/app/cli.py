"""The command line: minddpm demo, train, sample, evaluate, paper, data, selftest.

Exit codes: 0 done, 1 a check of selftest failed, 2 an error that you can fix (one sentence on stderr), 130 stopped by Ctrl-C.
"""

import argparse
import contextlib
import os
import sys
from dataclasses import fields

import minddpm
from minddpm.app import commands, settings
from minddpm.errors import UserError
from minddpm.fast.device import DEVICES, is_out_of_memory, reason


def main(argv=None):
    """Run one command; its exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)   # β where the terminal has none; lines as they come
    args, failed = _parser().parse_args(argv), 2
    try:
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except UserError as e:
        message = e
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())          # or Python prints another error at its exit
        message = "the output was closed before all of it was written"
    except OSError as e:
        message = f"{e.filename or 'output'}: {e.strerror or e}"
    except KeyboardInterrupt:
        message, failed = "stopped", 130
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        message = f"out of memory: {reason(e)}"
    print(f"minddpm: {message}", file=sys.stderr)
    return failed


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message):
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser():
    parser = Parser(prog="minddpm", description=minddpm.__doc__)
    parser.add_argument("--version", action="version", version=f"minddpm {minddpm.__version__}")
    into_main = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, f, into=into_main):
        p = into.add_parser(name, help=f.__doc__.split("\n")[0], description=f.__doc__)
        p.set_defaults(command=f)
        return p

    p = command("demo", commands.demo)
    p.add_argument("--out", default="runs/demo", help="the run's folder (default: %(default)s)")
    p.add_argument("--minutes", type=_minutes, default=5.0, help="how long to train (default: %(default)s)")
    p.add_argument("--seed", type=_seed, default=0, help="seed of the samples (default: %(default)s)")
    _compute_flags(p)

    p = command("train", commands.train)
    p.add_argument("--resume", metavar="DIR", help="go on with the run in DIR; of the other flags only --steps may be given")
    p.add_argument("--out", metavar="DIR", help="the run's folder; by default a new one in runs/")
    p.add_argument("--dry-run", action="store_true", default=None, help="print settings, parameters, memory and time, and stop")
    for f in fields(settings.Settings):
        _setting_flag(p, f)

    p = command("sample", commands.sample)
    p.add_argument("folder", metavar="DIR", help="a run's folder, or a diffusers DDPMPipeline's")
    p.add_argument("-n", type=int, default=64, help="number of samples (default: %(default)s)")
    p.add_argument("--seed", type=_seed, default=0,
                   help="image k of a seed is the same whatever -n and --batch (default: %(default)s)")
    p.add_argument("--batch", type=int, default=64, help="images at a time (default: %(default)s)")
    p.add_argument("--sigma2", choices=("beta", "beta_tilde"), help="σ_t²; by default the model's")
    p.add_argument("--no-clip", action="store_true", help="Alg. 2 as printed: do not clip the estimate of x_0 to [-1, 1]")
    p.add_argument("--out", metavar="F.png", help="grid of all samples; by default DIR/samples.png")
    p.add_argument("--gif", metavar="F.gif", help="film of the reverse process of the first batch")
    p.add_argument("--npz", metavar="F.npz", help="all samples as arr_0, uint8 (N,H,W,C)")
    p.add_argument("--png-dir", metavar="D", help="a folder for each sample as an 8-bit RGB file")
    _compute_flags(p)

    p = command("evaluate", commands.evaluate)
    p.add_argument("folder", metavar="DIR", help="a run's folder, or a diffusers DDPMPipeline's")
    p.add_argument("--bpd", action="store_true", help="bits/dim without samples, in about half the time")
    p.add_argument("-n", type=int, default=500, help="number of images of each kind (default: %(default)s)")
    p.add_argument("--data", metavar="NAME|PATH", help="data set; by default the one that the run was trained on")
    p.add_argument("--json", metavar="F.json", help="every number, also L_t and the error of x̂_0 at each t")
    p.add_argument("--seed", type=_seed, default=0, help="seed of the choice of images and of all noise (default: %(default)s)")
    _compute_flags(p)

    p = command("paper", commands.paper)
    p.add_argument("item", nargs="*", metavar="ITEM",
                   help="7 or eq 7 for Eq. (7); alg 2, table 4, fig 6, sec 3.3, app B; a word to look for; by default all")
    p.add_argument("--run", action="store_true", help="run the tests of ITEM, or of all")

    p = into_main.add_parser("data", help="The data sets.", description="The data sets.")
    into = p.add_subparsers(required=True, metavar="list|preview")
    command("list", commands.data_list, into)
    p = command("preview", commands.data_preview, into)
    p.add_argument("name", metavar="NAME|PATH", help="a built-in set or files of your own")
    p.add_argument("-n", type=int, default=64, help="number of images (default: %(default)s)")
    p.add_argument("--out", metavar="F.png", help="by default NAME.png")

    p = command("selftest", commands.selftest)
    p.add_argument("--device", choices=DEVICES, default="auto", help="what to test (default: %(default)s)")
    return parser


def _setting_flag(p, f):
    flag, kind, choices = f"--{f.name.replace('_', '-')}", f.metadata["kind"], f.metadata["choices"]
    default = "the preset's" if f.name in settings.TRAINING["tiny"] else f.default
    text = f.metadata["help"] + (f" (default: {default})" if default is not None else "")
    if kind is bool:
        p.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif choices:
        p.add_argument(flag, choices=choices, default=None, help=text)
    else:
        p.add_argument(flag, type=kind, default=None, help=text, metavar={int: "N", float: "X", str: "NAME|PATH"}[kind])


def _compute_flags(p):
    p.add_argument("--threads", type=_threads, metavar="N", help="worker threads; by default one a CPU")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: %(default)s)")


def _number(kind, low, high, expected):
    """A type for argparse: numbers of a kind from low to high."""
    def number(text):
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")

    return number


_minutes = _number(float, 1e-9, 1e6, "a positive number of minutes")
_seed = _number(int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1")
_threads = _number(int, 1, 4096, "a whole number from 1 to 4096")
