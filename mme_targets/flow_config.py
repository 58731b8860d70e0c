"""Parameters of optical flow and of interest points, as fields with symbol, unit and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import Config, number


@dataclass(frozen=True, kw_only=True)
class Tvl1Config(Config):
    """TV-L1 optical flow (Zach, Pock, Bischof 2007), in the terms of OpenCV's implementation.

    It minimises Σ |∇u| + |∇v| + λ |I₁(x + (u, v)) − I₀(x)| by coarse-to-fine warps, each followed
    by iterations that alternate a threshold step on the data term and a dual step τ on the total
    variation, coupled by θ. The iteration ends where the mean squared update of the flow is at most
    ε²; that is tested after every tenth iteration and at the end of an inner loop.

    The defaults are tuned for accuracy per time. Beside OpenCV's, the pyramid reaches down to 16 px
    (10 scales; motion of more than 20 px needs them), warps are 3, and the median is 3×3.
    """

    tau: float = number(0.25, 0, 0.25, open_low=True)
    """Time step τ of the dual scheme; it converges up to 1/4."""
    lambda_: float = number(0.15, 0, 100, open_low=True)
    """Weight λ of the data term, for images in 0–255; smaller is smoother."""
    theta: float = number(0.3, 1e-6, 100)
    """Tightness θ: how closely the two halves of the splitting hold together. Where it is
    far below 0.01 flow hardly leaves where it started."""
    gamma: float = number(0.0, 0, 100)
    """Weight γ of the illumination term, which lets brightness change smoothly; 0 leaves it out."""
    scales: int = number(10, 1, 32)
    """Levels of the pyramid at most; those under 16 px are left out."""
    scale_step: float = number(0.8, 0.05, 0.95)
    """Size of each level relative to the one below it."""
    alignment: Literal["half", "corner"] = "half"
    """How levels of the pyramid lie on each other: edges aligned, so that pixel centres are half a
    pixel inside, or the centres of their first pixels aligned (OpenCV's CUDA class)."""
    warps: int = number(3, 1, 100)
    """Times the second image is warped on each level."""
    cubic: float = number(-0.75, -1, 0)
    """Parameter a of the cubic convolution that warps (Keys 1981): −0.75 in OpenCV's CPU class,
    −0.5 in its CUDA class, which blurs more and biases fractional motion."""
    outside: Literal["drop", "clamp"] = "drop"
    """Where the flow leaves the second frame: no data term, or that of its border (OpenCV's CUDA
    class)."""
    epsilon: float = number(0.01, 0, 1)
    """The iteration stops when the mean squared update is at most ε² (px²)."""
    patient: bool = False
    """After a test of the stop that failed, wait an iteration for each multiple of ε² that the
    update had, and test first after two iterations: what OpenCV's CUDA class does."""
    inner_iterations: int = number(30, 1, 10000)
    """Dual iterations between two median filters."""
    outer_iterations: int = number(10, 1, 1000)
    """Median filters and inner loops a warp."""
    median: int = number(3, 1, 5)
    """Side of the median filter on the flow before each outer iteration, px; 1 leaves it out."""

    def _check_together(self) -> None:
        if self.median not in (1, 3, 5):
            self._fail("median", "must be 1 (none), 3 or 5")

    @classmethod
    def opencv_cuda(cls) -> Tvl1Config:
        """The structure that the authors' tools ran: OpenCV's CUDA class at its defaults.

        5 scales × 5 warps × up to 300 iterations, no median, a pyramid without half-pixel shift.
        """
        return cls(
            scales=5,
            alignment="corner",
            warps=5,
            cubic=-0.5,
            outside="clamp",
            patient=True,
            inner_iterations=300,
            outer_iterations=1,
            median=1,
        )


@dataclass(frozen=True, kw_only=True)
class SurfConfig(Config):
    """SURF interest points (Bay, Ess, Tuytelaars, Van Gool 2008), in the terms of OpenCV's class.

    The defaults are those of the warped-flow tools that Appendix A builds on: a Hessian threshold
    of 200, upright, 128 values.

    SURF is patented in the United States (US 8,165,401). `detector="corners"`, `"sift"` or `"orb"`
    does without it.
    """

    threshold: float = number(200.0, 0, 1e6)
    """Least determinant of the Hessian, whose derivatives are differences of box means of levels
    in 0–255: OpenCV's `hessianThreshold`."""
    octaves: int = number(4, 1, 4)
    """Octaves of filters: from 9 px to 27, 51, 99, 195 px."""
    upright: bool = True
    """Describe points as the frame stands; off, as their own gradients turn them, which withstands
    rotations of more than some 15°."""
    extended: bool = True
    """128 values, which keep apart gradients by the sign of the other component, instead of 64."""
    features: int = number(1000, 1, 4096)
    """Points kept in a frame at most, the strongest."""
