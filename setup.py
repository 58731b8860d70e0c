"""Build `mme_targets._cpu` with any C++17 compiler, and `mme_targets._cuda` where nvcc is.

Neither includes a torch header, so one build serves every torch. Environment variables:

MME_BUILD_CUDA   1: a missing nvcc is an error; 0: do not build _cuda; unset: build it if nvcc is
                 there
MME_CUDA_ARCHS   compute capabilities, e.g. "80;90"; unset: those of DEFAULT_ARCHS that this nvcc
                 knows
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
STAGES = ("trajectories", "descriptors", "patch_norm", "optical_flow")
CPU_STAGES = (*STAGES, "camera_motion", "homography", "track_rows", "track_encoder")
# The headers promise separately rounded products and sums; -fno-math-errno lets sqrt be one
# instruction, -fno-trapping-math lets comparisons be vectorised.
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += [
    "-fvisibility=hidden",
    "-fPIC",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
]
X86_VARIANTS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    # 256 bits: left to itself gcc spreads eight partial sums over 512, which takes twice as long.
    "avx512": [
        *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=256",
    ],
}


def find_nvcc() -> str | None:
    """Where the user points, then the PATH, then the usual place."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


class BuildNative(build_ext):
    """Compile each CPU stage once an instruction set, each CUDA stage for all devices."""

    def build_extension(self, ext: Extension) -> None:
        """Build one of the two modules."""
        import pybind11

        self.include = [pybind11.get_include(), *self.compiler.include_dirs, "csrc"]
        if not ext.name.endswith("_cuda"):
            self.build_cpu(ext)
            return
        try:
            self.build_cuda(ext)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            # Of this class, so that setuptools goes on without an extension that is optional.
            raise CompileError(f"mme_targets._cuda: {error}") from error

    def compile(self, source: str, folder: str, flags: list[str], macros: list[tuple]) -> list[str]:
        """Compile one C++ file into a folder of its own."""
        return self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp) / folder),
            macros=macros,
            include_dirs=self.include,
            extra_postargs=[*FLAGS, *flags],
            depends=[str(p) for p in Path("csrc").rglob("*.h")],
        )

    def build_cpu(self, ext: Extension) -> None:
        """Baseline, and on x86 AVX2 and AVX-512, chosen among at run time."""
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        variants = X86_VARIANTS if x86 else {"baseline": []}
        objects = []
        for name, flags in variants.items():
            for stage in CPU_STAGES:
                macros = [("MME_ISA", name)]
                objects += self.compile(f"csrc/cpu/{stage}.cpp", f"cpu_{name}", flags, macros)
        macros = [("MME_X86", "1")] if x86 else []
        for source in ("csrc/cpu/threads.cpp", "csrc/cpu/module.cpp"):
            objects += self.compile(source, "cpu", [], macros)
        self.link(ext, objects, ["pthread"])

    def build_cuda(self, ext: Extension) -> None:
        """Every stage by nvcc, linked with the static runtime: imports without a driver."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError("MME_BUILD_CUDA=1, but nvcc is neither in CUDA_HOME nor on the PATH")
        known = subprocess.run(
            [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
        )
        supported = set(re.findall(r"compute_(\d+)", known.stdout))
        wanted = re.findall(r"\d+", os.environ.get("MME_CUDA_ARCHS", ""))
        archs = wanted or [arch for arch in DEFAULT_ARCHS if arch in supported]
        if missing := [arch for arch in archs if arch not in supported]:
            raise RuntimeError(f"MME_CUDA_ARCHS names {missing}, which {nvcc} does not know")
        generate = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        generate.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for stage in STAGES:
            target = str(folder / f"{stage}.o")
            command = [nvcc, "-c", f"csrc/cuda/{stage}.cu", "-o", target, "-O3", "-std=c++17"]
            command += ["-Icsrc", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden", *generate]
            self.announce(" ".join(command), level=2)
            subprocess.run(command, check=True)
            objects.append(target)
        # nvcc compiles and links the host's part too: it alone knows where its toolkit lies, since
        # the one on the PATH may be a wrapper. The static runtime imports without a driver.
        target = str(folder / "module.o")
        macro = '-DMME_CUDA_ARCHS=\\"' + ";".join(archs) + '\\"'
        command = [nvcc, "-c", "csrc/cuda/module.cpp", "-o", target, "-O3", "-std=c++17"]
        command += [f"-I{path}" for path in self.include]
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden", macro]
        subprocess.run(command, check=True)
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [nvcc, "-shared", "-cudart=static", "-o", str(out), *objects, target]
        subprocess.run(command, check=True)

    def link(self, ext: Extension, objects: list[str], libraries: list[str]) -> None:
        """Link the objects of one module."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), libraries=libraries, target_lang="c++"
        )

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold."""
        return [str(path) for path in sorted(Path("csrc").rglob("*")) if path.is_file()]


def extensions() -> list[Extension]:
    """_cpu always; _cuda when asked for, or when nvcc is there."""
    modules = [Extension("mme_targets._cpu", ["csrc/cpu/module.cpp"], language="c++")]
    asked = os.environ.get("MME_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise RuntimeError(f"MME_BUILD_CUDA is {asked!r}; must be 0 or 1")
    if asked == "1" or (asked == "" and find_nvcc()):
        # optional: a CUDA toolkit too old for these kernels must not cost the CPU build.
        cuda = Extension(
            "mme_targets._cuda", ["csrc/cuda/module.cpp"], language="c++", optional=asked != "1"
        )
        modules.append(cuda)
    return modules


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
