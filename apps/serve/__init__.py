"""A server that speaks the OpenAI API, for any program that does."""
