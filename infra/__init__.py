"""The outside, one thing a file: only this package knows PostgreSQL, Redis, LiteLLM and the environment."""
