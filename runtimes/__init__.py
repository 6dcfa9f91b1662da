"""Runtimes: the devices that run the graphs of a bundle."""
