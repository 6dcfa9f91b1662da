"""Core ML: programs on Apple devices or in numpy, and the target and draft built on them."""
