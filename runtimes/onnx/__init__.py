"""ONNX Runtime: sessions, their KV caches, and the target and draft made of them."""
