"""--backend: what CuPy is in tests/device/.

    pytest                      `standin`, a strict stand-in of our own; no CuPy needed
    pytest --backend emu        real CuPy on the CPU, by the tool that MINDDPM_CUPY_ON_CPU names; its tests in tests/device/
    pytest --backend cupy       real CuPy on a GPU
"""

import os
import sys
import warnings
from types import SimpleNamespace

import pytest
import standin

from minddpm.device import probe

BACKENDS = ("standin", "emu", "cupy")
chosen = SimpleNamespace(name=None, tool=None, missing=None)


def pytest_addoption(parser):
    parser.addoption("--backend", choices=BACKENDS, default="standin", help="what CuPy is in tests/device/")
    parser.addoption("--require-backend", action="store_true", help="fail, rather than skip, where it cannot run")


def pytest_configure(config):
    """Real CuPy is chosen before anything imports it."""
    chosen.name = config.getoption("--backend")
    if chosen.name == "emu":
        chosen.missing = _emulator()
    elif chosen.name == "cupy":
        usable, sentence = probe()
        chosen.missing = None if usable else sentence


def _emulator():
    """Make CuPy run on the CPU -> None, or the reason why it cannot."""
    place = os.environ.get("MINDDPM_CUPY_ON_CPU")
    if not place:
        return "MINDDPM_CUPY_ON_CPU does not name the folder of cupy_on_cpu, which runs CuPy without a GPU"
    sys.path.insert(0, place)
    try:
        import cupy_on_cpu
    except ImportError:
        return f"MINDDPM_CUPY_ON_CPU is {place}, where there is no cupy_on_cpu"
    usable, why = cupy_on_cpu.available()
    if not usable:
        return why
    with warnings.catch_warnings():                              # in an empty cache it builds its library
        warnings.simplefilter("ignore")
        cupy_on_cpu.install()
    chosen.tool = cupy_on_cpu
    return None


def pytest_sessionfinish(session):
    """With --require-backend a test that was skipped is a failure, whatever the reason."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--require-backend") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def gpu(request, monkeypatch):
    """A device "cuda": .name of the backend; .counting(), launches, syncs, h2d … of a block; .kernels, whether they can run."""
    if chosen.missing:
        say = pytest.fail if request.config.getoption("--require-backend") else pytest.skip
        say(f"backend {chosen.name}: {chosen.missing}")
    if chosen.name == "standin":
        monkeypatch.setitem(sys.modules, "cupy", standin.module())
        monkeypatch.setenv("MINDDPM_KERNELS", "0")
        probe.cache_clear()
        yield SimpleNamespace(name="standin", kernels=False, counting=standin.counting)
        probe.cache_clear()
    else:
        yield SimpleNamespace(name=chosen.name, kernels=True, counting=getattr(chosen.tool, "counting", None))
