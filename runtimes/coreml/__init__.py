"""Core ML: programs on Apple's devices or in numpy, and the target and draft made of them."""
