"""Merkle trees as RFC 6962 has them (section 2.1): hashes, and which parts of a tree a proof is made of.

Nothing here reads or writes. A proof is a list of ranges of leaves; a range is made of complete subtrees; a complete
subtree is the hash over a run of nodes that are at hand: leaves, or every eighth level above them. Whoever has the
nodes gives them, and gets hashes.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

EMPTY = sha256().digest()
STEP = 8  # levels between those that are kept
TILE = 1 << STEP


class Run(NamedTuple):
    """Some neighbouring nodes of a kept level; level 0 are the leaves."""

    level: int
    first: int
    width: int


Nodes = Callable[[Run], Sequence[bytes]]


def leaf_hash(leaf: bytes) -> bytes:
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over these hashes of neighbouring nodes of one level."""
    if not hashes:
        return EMPTY
    level = list(hashes)
    while len(level) > 1:
        odd = level[len(level) & ~1 :]
        level = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]


# -- what proofs are made of -------------------------------------------------------------------------------------------

Range = tuple[int, int]  # leaves from the first until before the second


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The parts of a tree that, with a leaf, give its root; from the leaf upwards (PATH of the RFC)."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    start, end = 0, size
    path: list[Range] = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The parts of a tree that show that it begins with an older one (PROOF of the RFC)."""
    if not 0 < old <= new:
        raise ValueError(f"a tree of {new} does not begin with one of {old}")
    start, end = 0, new
    path: list[Range] = []
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    if start:
        path.append((start, end))
    return path[::-1]


def proven_root(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root to which a proof of inclusion leads from the hash of a leaf."""
    node = leaf
    for (_, end), other in zip(inclusion_ranges(index, size), proof, strict=True):
        node = node_hash(other, node) if end <= index else node_hash(node, other)
    return node


def runs_of(part: Range) -> list[Run]:
    """The nodes that the hash of a range is computed from, by subtree, from left to right."""
    start, end = part
    runs = []
    while start < end:
        height = (end - start).bit_length() - 1
        level, above = divmod(height, STEP)
        runs.append(Run(level, start >> (level * STEP), 1 << above))
        start += 1 << height
    return runs


def range_hash(part: Range, nodes: Nodes) -> bytes:
    """The hash of a range that is a subtree, or the right edge of the tree."""
    *others, last = [root_of(nodes(run)) for run in runs_of(part)] or [EMPTY]
    for left in reversed(others):
        last = node_hash(left, last)
    return last


def _split(size: int) -> int:
    """The largest power of two below a size."""
    return 1 << ((size - 1).bit_length() - 1)


# -- growing -----------------------------------------------------------------------------------------------------------


class Frontier:
    """The right edge of a tree that grows leaf by leaf: as many hashes as its size has ones.

    Args:
        full: called with a kept level, the number of a node on it, and its hash, when it is complete.
    """

    def __init__(self, full: Callable[[int, int, bytes], None] = lambda level, number, node: None) -> None:
        self._full = full
        self._edge: list[bytes] = []
        self.size = 0

    def add(self, node: bytes) -> None:
        """Adds the hash of a leaf."""
        ones, height = self.size, 0
        while ones & 1:
            node = node_hash(self._edge.pop(), node)
            ones >>= 1
            height += 1
            if height % STEP == 0:
                self._full(height // STEP, self.size >> height, node)
        self._edge.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        if not self._edge:
            return EMPTY
        *others, root = self._edge
        for left in reversed(others):
            root = node_hash(left, root)
        return root
