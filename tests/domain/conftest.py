"""Lets a failed `then` show its events as pytest shows any comparison."""

import pytest

pytest.register_assert_rewrite("tests.spec")
