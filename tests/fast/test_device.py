"""device.py: each way in which a GPU can be missing has its sentence, and a requested device is never replaced."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minddpm.errors import UserError
from minddpm.fast.device import choose, device_of, explain, is_cuda, probe, to_device, to_host


class DeviceArray:
    """A fake CuPy array: the few operations the probe uses, and CuPy's refusal to become a NumPy array by itself."""

    def __init__(self, host):
        self.host = host

    def get(self):
        return self.host.copy()

    def reshape(self, *shape):
        return type(self)(self.host.reshape(*shape))

    def __matmul__(self, other):
        return type(self)(self.host @ other.host)

    def sum(self):
        return type(self)(self.host.sum())

    def __float__(self):
        return float(self.host)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


class CUDARuntimeError(RuntimeError):
    """CuPy's exception of this name derives from RuntimeError too."""


def fake_cupy(version="14.2.0", count=1, array=DeviceArray):
    """A module that can pass for CuPy as far as device.py looks.  count may be an exception, raised by getDeviceCount."""

    def get_device_count():
        if isinstance(count, Exception):
            raise count
        return count

    cupy = ModuleType("cupy")
    cupy.__version__ = version
    cupy.ndarray = DeviceArray
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=get_device_count))
    cupy.asarray = array
    cupy.arange = lambda n, dtype: array(np.arange(n, dtype=dtype))
    return cupy


def failing(error):
    """Arrays that can be created, and fail at the first matrix product as on a GPU without its libraries."""

    class Failing(DeviceArray):
        def __matmul__(self, other):
            raise error

    return Failing


@pytest.fixture(autouse=True)
def no_cupy(monkeypatch):
    """Every test starts on a machine without CuPy, without MINDDPM_DEVICE and with nothing remembered."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delenv("MINDDPM_DEVICE", raising=False)
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.fixture
def install(monkeypatch):
    return lambda **facts: monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**facts))


@pytest.fixture
def install_source(monkeypatch, tmp_path):
    """Puts a package cupy with this source on the path; with None, a folder of that name that holds nothing."""

    def write(source):
        (tmp_path / "cupy").mkdir()
        if source is not None:
            (tmp_path / "cupy" / "__init__.py").write_text(source)
        del sys.modules["cupy"]
        others = [place for place in sys.path if not (Path(place) / "cupy").is_dir()]      # a real one would win over the folder
        monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
        importlib.invalidate_caches()

    return write


def refusal():
    """The sentence of a probe that finds no GPU: one line, and the whole reason that `choose` and `explain` give."""
    usable, sentence = probe()
    assert not usable
    assert "\n" not in sentence and "====" not in sentence
    assert choose("auto") == "cpu"
    assert explain("auto") == f"device cpu: no GPU is used, as {sentence}"
    with pytest.raises(UserError) as error:
        choose("cuda")
    assert str(error.value) == f"device is 'cuda', but {sentence}"
    return sentence


WHEEL = "pip install 'cupy-cuda13x[ctk]', or 'cupy-cuda12x[ctk]' for a CUDA 12 driver"


def test_probe_not_installed():
    assert refusal() == f"CuPy is not installed (to use an NVIDIA GPU: {WHEEL})"


def test_probe_not_importable_names_the_cause_and_not_the_banner(install_source):
    install_source("""
try:
    raise ImportError("libcuda.so.1: cannot open shared object file")
except ImportError as error:
    raise ImportError("\\n====\\nFailed to import CuPy.\\n\\nIf you installed CuPy via wheels\\n====") from error
""")
    assert refusal() == ("CuPy is installed but cannot be imported: ImportError: libcuda.so.1: cannot open shared object file "
                         f"(reinstall it: {WHEEL})")


@pytest.mark.parametrize("source, reason", [
    ("raise RuntimeError('\\n====\\nbuilt for another NumPy\\nmore\\n====')", "RuntimeError: built for another NumPy"),
    ("raise OSError", "OSError: no message"),
    ("__version__ = 'unknown'", "ValueError: "),
    (None, "AttributeError: module 'cupy' has no attribute '__version__'"),
])
def test_probe_not_importable_whatever_is_raised(install_source, source, reason):
    install_source(source)
    assert refusal().startswith(f"CuPy is installed but cannot be imported: {reason}")


def test_probe_too_old(install):
    install(version="12.3.0")
    assert refusal() == f"CuPy 12.3.0 is too old, 13 or later is needed ({WHEEL})"


def test_probe_no_driver(install):
    install(count=CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"))
    assert refusal() == ("CuPy 14.2.0 is installed but finds no usable NVIDIA driver: CUDARuntimeError: "
                         "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version "
                         "(there is none, or it is too old for this CuPy: see nvidia-smi)")


@pytest.mark.parametrize("count", [0, CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")])
def test_probe_no_device(install, count):
    install(count=count)
    assert refusal() == "CuPy 14.2.0 is installed but there is no GPU (check CUDA_VISIBLE_DEVICES)"


def test_probe_toolkit_libraries_missing(install):
    install(count=2, array=failing(ImportError('Failure finding "libcublasLt.so.13"\nsearched: here\nand there')))
    assert refusal() == ('CuPy 14.2.0 finds 2 GPU(s) but cannot compute on the first: ImportError: Failure finding '
                         f'"libcublasLt.so.13" (often the CUDA toolkit libraries are missing: {WHEEL})')


@pytest.mark.parametrize("error", [
    MemoryError("Out of memory allocating 512 bytes"),
    CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
])
def test_probe_out_of_memory(install, error):
    install(array=failing(error))
    assert refusal() == (f"CuPy 14.2.0 finds 1 GPU(s) but the first has no free memory: {type(error).__name__}: {error} "
                         "(nvidia-smi shows which process holds it; CUDA_VISIBLE_DEVICES selects another GPU)")


def test_probe_wrong_result(install):
    class Wrong(DeviceArray):
        def __float__(self):
            return 26.0

    install(array=Wrong)
    assert refusal() == ("CuPy 14.2.0 finds 1 GPU(s) but computes 26 instead of 22 "
                         f"(update the driver or reinstall CuPy: {WHEEL})")


@pytest.mark.parametrize("version", ["13.6.0", "14.2.0", "15.0.0a1"])
def test_probe_finds_a_gpu_that_computes(install, version):
    install(version=version)
    assert probe() == (True, f"CuPy {version} finds 1 GPU(s) and computes on the first")
    assert choose() == choose("cuda") == "cuda"
    assert explain() == f"device cuda: CuPy {version} finds 1 GPU(s) and computes on the first"


def test_probe_computes_once(install):
    install()
    first = probe()
    install(count=0)
    assert probe() is first


@pytest.mark.parametrize("device, variable, chosen, why", [
    ("cpu", "cuda", "cpu", "requested"),
    ("cuda", "cpu", "cuda", None),
    ("cpu", "gibberish", "cpu", "requested"),
    ("auto", "cpu", "cpu", "requested by MINDDPM_DEVICE"),
    (None, "cpu", "cpu", "requested by MINDDPM_DEVICE"),
    ("auto", "auto", "cuda", None),
    ("auto", "", "cuda", None),
    (None, None, "cuda", None),
])
def test_device_argument_then_environment_then_machine(install, monkeypatch, device, variable, chosen, why):
    install()
    if variable is not None:
        monkeypatch.setenv("MINDDPM_DEVICE", variable)
    assert choose(device) == chosen
    assert explain(device) == f"device {chosen}: {why or probe()[1]}"


def test_device_cpu_needs_no_probe():
    assert choose("cpu") == "cpu"
    assert probe.cache_info().misses == 0


def test_device_of_the_environment_is_not_replaced_either(monkeypatch):
    monkeypatch.setenv("MINDDPM_DEVICE", "cuda")
    with pytest.raises(UserError, match=r"^MINDDPM_DEVICE is 'cuda', but CuPy is not installed \(to use an NVIDIA GPU: pip "):
        choose()


def test_device_unknown_names_found_and_expected(monkeypatch):
    with pytest.raises(UserError, match="^device is 'gpu', expected one of auto, cpu, cuda$"):
        choose("gpu")
    monkeypatch.setenv("MINDDPM_DEVICE", "tpu")
    with pytest.raises(UserError, match="^MINDDPM_DEVICE is 'tpu', expected one of auto, cpu, cuda$"):
        choose("auto")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_arrays_go_to_the_device_and_come_back(install, dtype):
    install()
    a = np.arange(6, dtype=dtype).reshape(2, 3).T
    d = to_device(a, "cuda")
    assert is_cuda(d) and not is_cuda(a) and (device_of(d), device_of(a)) == ("cuda", "cpu")
    for b in to_host(d), to_device(d, "cpu"):
        assert type(b) is np.ndarray and b.dtype == dtype
        np.testing.assert_array_equal(b, a)


def test_arrays_that_are_there_are_not_copied():
    a = np.zeros(3)
    assert to_host(a) is a
    assert to_device(a, "cpu") is a
    assert not is_cuda(a) and not is_cuda(3.0) and device_of(a) == "cpu"


def test_to_device_takes_what_choose_returned():
    with pytest.raises(UserError, match="^device is 'auto', expected cpu or cuda"):
        to_device(np.zeros(3), "auto")


def test_import_of_device_imports_no_cupy(tmp_path):
    (tmp_path / "cupy.py").write_text("raise SystemExit('imported')")
    code = "import sys, numpy, minddpm.fast.device as b; assert not b.is_cuda(numpy.zeros(1)); assert 'cupy' not in sys.modules"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)
