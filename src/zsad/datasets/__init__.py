"""Data sets: layouts, manifests, the catalogue, and checks of what a folder holds."""
