"""Camera motion in batched torch operations, for every device: the cpu, triton and cuda floors.

On the cpu floor they are kernels (`csrc/cpu/camera_motion.cpp`, `homography.cpp`), which return the
same; the operations remain for a CPU without them.

Nothing here waits for a device, and nothing depends on the batch or the number of threads: what is
counted is counted in whole numbers, what is compared is compared in a stated order, and sums of
fractions are added in halves whose order is their own.
"""
