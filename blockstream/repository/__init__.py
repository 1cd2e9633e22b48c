"""Restore points of disks, kept where nobody answers.

repository   which disks and points a store holds, and how a new one becomes visible
restore      a point becomes a disk again: `sources/point.py` is read as any source
"""
