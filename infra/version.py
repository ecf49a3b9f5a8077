"""What we are called, and which of us this is."""

from importlib.metadata import PackageNotFoundError, version

SERVICE = "saas-llm-api"
try:
    VERSION = version("saas-litellm")
except PackageNotFoundError:  # run from a tree that was never installed
    VERSION = "0.0.0"
