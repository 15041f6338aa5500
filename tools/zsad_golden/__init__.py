"""The golden set: what zsad writes and prints for pictures that are drawn here, kept in tests/golden."""
