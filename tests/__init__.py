"""What is tested here is said in sentences: each test's name is one."""

import pytest

# A failed `then` shows its events as pytest shows any comparison.
pytest.register_assert_rewrite("tests.spec")
