"""VirNucPro's virus prediction for short sequences: exact, restartable, on every device at once."""

__version__ = "0.1.0"
