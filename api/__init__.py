"""The HTTP API: a controller a noun, and a controller's method is the use case, to be read from top to bottom."""
