"""The tree is that of RFC 6962, and what it proves is what a verifier that knows nothing of it accepts."""

from collections.abc import Sequence
from hashlib import sha256

import pytest

from examples.verify_receipt import NotProven, require_consistent, root_of_inclusion
from infra import merkle
from infra.merkle import Frontier, Run

MOST = 70
SIZES = [1, 2, 3, 255, 256, 257, 511, 513, 65_535, 65_536, 65_537, 66_000]
LEAVES = [merkle.leaf_hash(number.to_bytes(4)) for number in range(max(SIZES))]


def tree_of(leaves: Sequence[bytes]) -> bytes:
    """MTH, word for word as in the RFC, but on hashes of leaves."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return merkle.node_hash(tree_of(leaves[:split]), tree_of(leaves[split:]))


def nodes(run: Run) -> list[bytes]:
    if not run.level:
        return LEAVES[run.first : run.first + run.width]
    width = 1 << run.level * merkle.STEP
    return [
        tree_of(LEAVES[number * width : (number + 1) * width]) for number in range(run.first, run.first + run.width)
    ]


def proof_of(ranges: list[merkle.Range]) -> list[bytes]:
    return [merkle.range_hash(part, nodes) for part in ranges]


def test_the_known_roots_of_the_rfc():
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" == merkle.EMPTY.hex()
    assert "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d" == merkle.leaf_hash(b"").hex()


@pytest.mark.parametrize("size", SIZES)
def test_a_root_is_computed_from_every_eighth_level(size: int):
    assert tree_of(LEAVES[:size]) == merkle.range_hash((0, size), nodes)


def test_a_tree_that_grows_leaf_by_leaf_has_the_same_roots_and_nodes():
    kept: dict[tuple[int, int], bytes] = {}
    tree = Frontier(lambda level, number, node: kept.update({(level, number): node}))
    for size, leaf in enumerate(LEAVES, start=1):
        tree.add(leaf)
        if size < MOST or size in SIZES:
            assert tree_of(LEAVES[:size]) == tree.root
    assert {(1, number) for number in range(len(LEAVES) // 256)} | {(2, 0)} == set(kept)
    assert all([node] == nodes(Run(*place, 1)) for place, node in kept.items() if place[1] < 3)


def test_every_leaf_of_every_small_tree_is_proven():
    for size in range(1, MOST):
        root = tree_of(LEAVES[:size])
        for index in range(size):
            proof = proof_of(merkle.inclusion_ranges(index, size))
            assert root == root_of_inclusion(LEAVES[index], index, size, proof)
            assert root == merkle.proven_root(LEAVES[index], index, size, proof)


def test_every_small_tree_begins_with_every_smaller_one():
    for new in range(1, MOST):
        for old in range(1, new + 1):
            proof = proof_of(merkle.consistency_ranges(old, new))
            require_consistent(old, tree_of(LEAVES[:old]), new, tree_of(LEAVES[:new]), proof)


@pytest.mark.parametrize("size", SIZES)
def test_leaves_at_the_edges_of_large_trees_are_proven(size: int):
    for index in {0, size // 2, size - 1}:
        proof = proof_of(merkle.inclusion_ranges(index, size))
        assert merkle.range_hash((0, size), nodes) == root_of_inclusion(LEAVES[index], index, size, proof)


def test_a_proof_for_another_place_or_with_another_node_proves_nothing():
    size = 13
    root, proof = tree_of(LEAVES[:size]), proof_of(merkle.inclusion_ranges(5, size))
    for index in set(range(size)) - {5}:
        try:
            assert root != root_of_inclusion(LEAVES[5], index, size, proof)
        except NotProven:
            continue
    for place in range(len(proof)):
        forged = [*proof[:place], bytes(32), *proof[place + 1 :]]
        assert root != root_of_inclusion(LEAVES[5], 5, size, forged)
    with pytest.raises(NotProven):
        root_of_inclusion(LEAVES[5], 5, size, proof[:-1])


def test_a_rewritten_history_is_not_consistent():
    forged = [*LEAVES[:3], bytes(32), *LEAVES[4:MOST]]
    for new in range(8, MOST):
        proof = [merkle.range_hash(part, lambda run: forged[run.first : run.first + run.width]) for part in (
            merkle.consistency_ranges(7, new)
        )]  # fmt: skip
        with pytest.raises(NotProven):
            require_consistent(7, tree_of(LEAVES[:7]), new, tree_of(forged[:new]), proof)
