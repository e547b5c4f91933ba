"""The device: the one place that chooses it, moves arrays to and from it, and knows what this machine has.

The maths is written in plain NumPy calls, and NumPy hands a call on CuPy arrays to CuPy.  So a device is chosen once, the
arrays are moved to it, and from there on the code is the same.  CuPy is imported here only, and only when it is asked for.
"""

import functools
import gc
import importlib
import importlib.util
import os
import sys

import numpy as np

from minddpm.errors import UserError

DEVICES = ("auto", "cpu", "cuda")
_WHEEL = "pip install 'cupy-cuda13x[ctk]', or 'cupy-cuda12x[ctk]' for a CUDA 12 driver"


def choose(device="auto"):
    """The device to compute on, "cpu" or "cuda".

    device is "cpu", "cuda", or "auto" (or None), which leaves the decision to the environment variable MINDDPM_DEVICE, and
    where that is not set or "auto" as well, to the machine: "cuda" when CuPy can run here, else "cpu".
    UserError for any other name, and for "cuda" where CuPy cannot run: what was asked for by name is never replaced.
    """
    return _decide(device)[0]


def explain(device="auto"):
    """The line to print before a run: what `choose(device)` takes, and why.  Errors as `choose`."""
    return "device {}: {}".format(*_decide(device))


def _decide(device):
    """(taken, why) for `choose` and `explain`."""
    for name, source in (device, "device"), (os.environ.get("MINDDPM_DEVICE"), "MINDDPM_DEVICE"):
        if name and name not in DEVICES:
            raise UserError(f"{source} is {name!r}, expected one of {', '.join(DEVICES)}")
        if name == "cpu":
            return "cpu", f"asked for by {source}"
        if name == "cuda":
            usable, sentence = probe()
            if not usable:
                raise UserError(f"{source} asks for cuda, but {sentence}")
            return "cuda", sentence
    usable, sentence = probe()
    return ("cuda" if usable else "cpu"), sentence


@functools.cache
def probe():
    """(usable, sentence): whether CuPy can compute on this machine, and one line that says why, or what to do about it.

    Raises nothing.  A driver that answers is no proof: without the CUDA toolkit's libraries arrays can be created and the
    first kernel fails.  So one kernel and one matrix product must come out right before a GPU is believed in.
    The first call takes up to seconds (import, CUDA context); the answer is kept for the life of the process.
    """
    if sys.modules.get("cupy") is None and importlib.util.find_spec("cupy") is None:
        return False, f"CuPy is not installed ({_WHEEL})"
    try:
        cupy = importlib.import_module("cupy")
        version, major = cupy.__version__, int(cupy.__version__.split(".")[0])
    except Exception as error:                       # not only ImportError: a broken installation raises what it likes
        return False, f"CuPy is installed but cannot be imported: {reason(error.__cause__ or error)} (reinstall it: {_WHEEL})"
    if major < 13:
        return False, f"CuPy {version} is too old, 13 or later is needed ({_WHEEL})"

    no_gpu = f"CuPy {version} is installed but there is no GPU (check CUDA_VISIBLE_DEVICES)"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" in str(error):
            return False, no_gpu
        return False, (f"CuPy {version} is installed but finds no usable NVIDIA driver: {reason(error)} "
                       "(there is none, or it is too old for this CuPy: nvidia-smi tells)")
    if count == 0:
        return False, no_gpu

    sees = f"CuPy {version} sees {count} GPU(s)"
    try:
        a = cupy.arange(4, dtype=np.float32).reshape(2, 2)
        total = float((a @ a).sum())                 # [[0 1] [2 3]]² = [[2 3] [6 11]]
    except Exception as error:
        if is_out_of_memory(error):
            return False, (f"{sees} but the first has no free memory: {reason(error)} "
                           "(nvidia-smi shows who holds it; CUDA_VISIBLE_DEVICES selects another GPU)")
        return False, (f"{sees} but cannot run on them: {reason(error)} "
                       f"(often the CUDA toolkit libraries are missing: {_WHEEL})")
    if total != 22:
        return False, f"{sees} but computes {total:g} where 22 is right (update the driver or reinstall CuPy: {_WHEEL})"
    return True, f"{sees} and computes on the first"


def is_out_of_memory(error):
    """Whether an exception says that memory ran out: NumPy's and CuPy's pool's are MemoryErrors; CUDA and cuBLAS name it."""
    return isinstance(error, MemoryError) or "MemoryAllocation" in str(error) or "ALLOC_FAILED" in str(error)


def reason(error):
    """The error's type and its first line that says something: CuPy frames some of its messages with rules of ====."""
    lines = (line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line)))
    return f"{type(error).__name__}: {next(lines, 'no message')[:200]}"


def cupy():
    """CuPy itself, for the few things that NumPy's calls do not reach.  Only where an array of its is at hand."""
    return importlib.import_module("cupy")


def to_device(a, device):
    """The array a, of any shape and dtype, on device "cpu" or "cuda" (what `choose` returned); a itself if it is there."""
    if device == "cpu":
        return to_host(a)
    if device == "cuda":
        return cupy().asarray(a)
    raise UserError(f"device is {device!r}, expected cpu or cuda: choose() decides what auto means")


def free_bytes():
    """The bytes that are free on the GPU."""
    return cupy().cuda.runtime.memGetInfo()[0]


def to_host(a):
    """The array a, of any shape and dtype, as a NumPy array; a itself if it is one."""
    return a.get() if is_cuda(a) else np.asarray(a)


def is_cuda(a):
    """Whether a is a CuPy array.  Where nobody has imported CuPy nothing is, so this imports nothing."""
    return isinstance(a, getattr(sys.modules.get("cupy"), "ndarray", ()))


def free_memory(device):
    """Give back what nobody uses on "cpu" or "cuda": cycles of dead objects, and the blocks that CuPy's pool keeps for later."""
    gc.collect()
    if device == "cuda":
        cupy().get_default_memory_pool().free_all_blocks()


def pool_bytes():
    """The bytes of the GPU that CuPy's pool holds: what it has given out, and what it keeps for later.

    It gives back none of them until free_memory, or until an allocation fails: then CuPy frees what it keeps and tries again.
    """
    return cupy().get_default_memory_pool().total_bytes()


def without_tf32():
    """Have CuPy multiply matrices in float32 whatever CUPY_TF32 says, which it reads at its first product -> what that said.

    To be called before the device is chosen, as that multiplies.
    """
    return os.environ.pop("CUPY_TF32", None)


def gpu():
    """{fact: value} about the GPU that `probe` believes in, its driver and CuPy, for a report."""
    runtime, version = cupy().cuda.runtime, "{0[0]}.{0[1]}".format
    first = runtime.getDeviceProperties(0)
    return {"GPU": f"{first['name'].decode()}, {first['totalGlobalMem'] / 2**30:.1f} GB, "
                   f"compute capability {first['major']}.{first['minor']}",
            "driver": f"for CUDA {version(divmod(runtime.driverGetVersion() // 10, 100))}",
            "CuPy": f"{cupy().__version__}, CUDA runtime {version(divmod(runtime.runtimeGetVersion() // 10, 100))}"}
