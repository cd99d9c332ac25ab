"""Age stages and contrasts that one pair of networks tells apart."""

from __future__ import annotations

__all__ = ["CONDITIONS"]

CONDITIONS = (
    "any",  # contrast drawn at random: the teacher that labels the templates
    *(f"T1w-{stage}" for stage in ("0", "3", "6", "9", "12", "18", "24")),
    *(f"T2w-{stage}" for stage in ("fetal", "0", "3", "6", "9", "12", "18", "24")),
)
"""What a training sample says about itself; its place is the network's condition."""
