"""What ends a run, beside wrong settings and files that cannot be used."""

__all__ = ["TrainingError"]


class TrainingError(RuntimeError):
    """A run that cannot go on; what it had is kept."""
