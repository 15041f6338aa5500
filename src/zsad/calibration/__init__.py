"""Thresholds from normal images, what they promise, and drift."""
