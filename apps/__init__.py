"""Programs over the public API: the command line, the chat, the server, the benchmarks."""
