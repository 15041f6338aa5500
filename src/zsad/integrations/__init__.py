"""Adapters to other packages. Each module needs the package it is named after and is imported only on request."""
