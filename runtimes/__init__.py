"""Devices: what runs the graphs of a bundle, and where."""
