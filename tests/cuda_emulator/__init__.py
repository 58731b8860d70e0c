"""Builds csrc/cuda as host code, whose kernels then run on any machine; see cuda_runtime.h."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
# As setup.py for the host: products and sums round apart.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas"]
MACROS = ["-DMME_CUDA_MODULE=_emulated", '-DMME_CUDA_ARCHS="emulated"']


def build(folder: Path) -> Path:
    """Compile the kernels, the module and the emulator into one library in `folder`."""
    import pybind11

    include = [
        f"-I{path}" for path in (HERE, pybind11.get_include(), sysconfig.get_path("include"))
    ]
    sources = [*sorted(CUDA.glob("*.cu")), CUDA / "module.cpp", *sorted(HERE.glob("*.cpp"))]
    compiler = os.environ.get("CXX", "g++")
    jobs, objects = [], []
    for source in sources:
        objects.append(str(folder / f"{source.stem}.o"))
        command = [compiler, *FLAGS, *MACROS, *include, "-x", "c++", "-c", str(source)]
        jobs.append((source, subprocess.Popen([*command, "-o", objects[-1]])))
    for source, job in jobs:
        if job.wait():
            raise RuntimeError(f"{source.name} does not compile for the emulator")
    library = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", *objects, "-o", str(library)], check=True)
    return library


def load(library: Path) -> ModuleType:
    """Import what `build` made: a module with the functions of `mme_targets._cuda`."""
    loader = ExtensionFileLoader("_emulated", str(library))
    spec = spec_from_loader("_emulated", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
