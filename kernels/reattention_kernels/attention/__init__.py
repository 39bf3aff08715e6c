"""Ordinary attention over a window whose keys are gathered and rotated already."""
