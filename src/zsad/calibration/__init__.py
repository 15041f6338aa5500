"""Thresholds from normal images with guaranteed false alarm rates, and tests for drift."""
