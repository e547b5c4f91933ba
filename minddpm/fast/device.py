"""The device, CPU or GPU: the choice of one, and the few things that NumPy and CuPy arrays do not do alike.

The maths is written in plain NumPy calls, and NumPy hands a call on CuPy arrays to CuPy.  So a device is chosen once, the
arrays are moved to it, and from there on the code is the same.  Only this file imports CuPy, and only when it is needed.
"""

import functools
import gc
import importlib
import importlib.util
import os
import sys
from contextlib import contextmanager

import numpy as np

from minddpm.errors import UserError

DEVICES = ("auto", "cpu", "cuda")
_WHEEL = "pip install 'cupy-cuda13x[ctk]', or 'cupy-cuda12x[ctk]' for a CUDA 12 driver"


def choose(device="auto"):
    """The device to compute on, "cpu" or "cuda".

    device: "cpu", "cuda", or "auto" (or None), which leaves the choice to the environment variable MINDDPM_DEVICE, and where
    that is "auto" or not set, to the machine: "cuda" if CuPy can compute here, otherwise "cpu".
    UserError: any other name, or "cuda" where CuPy cannot compute; a device that was requested by name is never replaced.
    """
    return _decide(device)[0]


def explain(device="auto"):
    """The line to print before a run: the device that `choose(device)` returns, and the reason.  Errors as `choose`."""
    return "device {}: {}".format(*_decide(device))


def _decide(device):
    """(device, reason) for `choose` and `explain`."""
    for name, source in (device, "device"), (os.environ.get("MINDDPM_DEVICE"), "MINDDPM_DEVICE"):
        if name and name not in DEVICES:
            raise UserError(f"{source} is {name!r}, expected one of {', '.join(DEVICES)}")
        if name == "cpu":
            return "cpu", "requested" if source == "device" else f"requested by {source}"
        if name == "cuda":
            usable, sentence = probe()
            if not usable:
                raise UserError(f"{source} is 'cuda', but {sentence}")
            return "cuda", sentence
    usable, sentence = probe()
    return ("cuda", sentence) if usable else ("cpu", f"no GPU is used, as {sentence}")


@functools.cache
def probe():
    """(usable, sentence): whether CuPy can compute on this machine, and one line with the reason, or with what would help.

    Raises nothing.  A driver that works is not enough: without the CUDA toolkit's libraries arrays can be created and the first
    kernel fails.  So a kernel and a matrix product must give the right result before a GPU is used.
    The first call takes up to seconds (import, CUDA context); its result is kept for the life of the process.
    """
    if sys.modules.get("cupy") is None and importlib.util.find_spec("cupy") is None:
        return False, f"CuPy is not installed (to use an NVIDIA GPU: {_WHEEL})"
    try:
        cupy = importlib.import_module("cupy")
        version, major = cupy.__version__, int(cupy.__version__.split(".")[0])
    except Exception as error:                       # not only ImportError: a broken installation may raise anything
        return False, f"CuPy is installed but cannot be imported: {reason(error.__cause__ or error)} (reinstall it: {_WHEEL})"
    if major < 13:
        return False, f"CuPy {version} is too old, 13 or later is needed ({_WHEEL})"

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" not in str(error):
            return False, (f"CuPy {version} is installed but finds no usable NVIDIA driver: {reason(error)} "
                           "(there is none, or it is too old for this CuPy: see nvidia-smi)")
        count = 0
    if count == 0:
        return False, f"CuPy {version} is installed but there is no GPU (check CUDA_VISIBLE_DEVICES)"

    finds = f"CuPy {version} finds {count} GPU(s)"
    try:
        a = cupy.arange(4, dtype=np.float32).reshape(2, 2)
        total = float((a @ a).sum())                 # [[0 1] [2 3]]² = [[2 3] [6 11]]
    except Exception as error:
        if is_out_of_memory(error):
            return False, (f"{finds} but the first has no free memory: {reason(error)} "
                           "(nvidia-smi shows which process holds it; CUDA_VISIBLE_DEVICES selects another GPU)")
        return False, (f"{finds} but cannot compute on the first: {reason(error)} "
                       f"(often the CUDA toolkit libraries are missing: {_WHEEL})")
    if total != 22:
        return False, f"{finds} but computes {total:g} instead of 22 (update the driver or reinstall CuPy: {_WHEEL})"
    return True, f"{finds} and computes on the first"


def is_out_of_memory(error):
    """Whether an exception means that memory ran out: NumPy and CuPy's pool raise MemoryErrors; CUDA and cuBLAS have codes."""
    return isinstance(error, MemoryError) or "MemoryAllocation" in str(error) or "ALLOC_FAILED" in str(error)


@contextmanager
def out_of_memory(doing, advice):
    """A context in which running out of memory, on the host or a GPU, raises a UserError that names `doing` and the advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory while {doing} ({reason(error)}); {advice}") from error


def reason(error):
    """The error's type and the first line of its message that has words: some of CuPy's begin with rules of ====."""
    lines = (line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line)))
    return f"{type(error).__name__}: {next(lines, 'no message')[:200]}"


def cupy():
    """The module cupy, for the few things that NumPy's calls do not reach; only for code that runs on a GPU."""
    return importlib.import_module("cupy")


def is_cuda(a):
    """Whether a is a CuPy array.  It imports nothing: where CuPy is not imported there are no CuPy arrays."""
    return isinstance(a, getattr(sys.modules.get("cupy"), "ndarray", ()))


def device_of(a):
    """The device that the array a is on, "cpu" or "cuda"."""
    return "cuda" if is_cuda(a) else "cpu"


def to_device(a, device):
    """The array a, of any shape and dtype, on device "cpu" or "cuda"; a itself if it is there already."""
    if device == "cpu":
        return to_host(a)
    if device == "cuda":
        return cupy().asarray(a)
    raise UserError(f"device is {device!r}, expected cpu or cuda: choose() turns auto into one of them")


def to_host(a):
    """The array a, of any shape and dtype, as a NumPy array; a itself if it is one."""
    return a.get() if is_cuda(a) else np.asarray(a)


def free_bytes():
    """The number of bytes that are free on the GPU."""
    return cupy().cuda.runtime.memGetInfo()[0]


def pool_bytes():
    """The number of bytes on the GPU that CuPy's pool holds: those in use, and those that were freed and are kept for later.

    The latter are given back by free_memory, or when an allocation fails, which CuPy then tries again.
    """
    return cupy().get_default_memory_pool().total_bytes()


def free_memory(device):
    """Frees what is no longer used on "cpu" or "cuda": reference cycles, and the blocks that CuPy's pool keeps for later."""
    gc.collect()
    if device == "cuda":
        cupy().get_default_memory_pool().free_all_blocks()


def gpu():
    """{fact: value} about the GPU that is used, its driver and CuPy, for a report."""
    runtime, version = cupy().cuda.runtime, "{0[0]}.{0[1]}".format
    first = runtime.getDeviceProperties(0)
    return {"GPU": f"{first['name'].decode()}, {first['totalGlobalMem'] / 2**30:.1f} GB, "
                   f"compute capability {first['major']}.{first['minor']}",
            "driver": f"for CUDA {version(divmod(runtime.driverGetVersion() // 10, 100))}",
            "CuPy": f"{cupy().__version__}, CUDA runtime {version(divmod(runtime.runtimeGetVersion() // 10, 100))}"}
