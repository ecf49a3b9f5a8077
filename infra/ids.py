"""Ids of what the server makes: jobs, calls, transactions, keys, requests.

They are UUIDs of version 7: they begin with the time, so that what is new lies together at the end of every index.
Random ones would touch a page of their own each.
"""

from uuid_utils import uuid7


def new_id() -> str:
    """A UUID in its usual spelling, greater than all that this process made before."""
    return str(uuid7())
