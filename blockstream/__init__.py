"""blockstream moves block devices by streaming only what changed, and proves that it arrived."""

__version__ = "0.1.0"
