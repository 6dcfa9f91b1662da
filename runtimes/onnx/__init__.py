"""ONNX Runtime: sessions, KV caches, and the target and draft built on them."""
