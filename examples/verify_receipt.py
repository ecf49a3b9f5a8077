"""Verifies receipts of a ledger without asking it anything: one file, the standard library and `cryptography`.

    verify_receipt.py receipt.json --key "$VERIFIER_KEY"
    verify_receipt.py consistency.json --key "$VERIFIER_KEY" [--old checkpoint.txt]

A receipt (GET /api/audit/receipts/<transaction_id>) proves that an entry is in the ledger that a checkpoint was signed
for. A consistency proof (GET /api/audit/consistency?from=&to=) proves that the ledger of an older checkpoint is how the
newer one begins: nothing was changed, inserted or removed. Get the key (GET /api/audit/key) once, and keep it yourself:
a ledger that vouched for its own key would prove nothing.

Formats: Merkle trees of RFC 6962, checkpoints as C2SP signed notes with Ed25519.
"""

import argparse
import json
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HASH_SIZE = 32  # bytes


class NotProven(Exception):
    """Something does not follow; the text says what."""


# -- Merkle trees (RFC 6962, section 2.1; verification as in RFC 9162, section 2.1.3 and 2.1.4) ------------------------


def leaf_hash(leaf: bytes) -> bytes:
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def root_of_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root that a leaf and its proof lead to."""
    if not 0 <= index < size:
        raise NotProven(f"a tree of {size} has no leaf {index}")
    node, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise NotProven("the proof is too long")
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise NotProven("the proof is too short")
    return found


def require_consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]) -> None:
    """Raises NotProven unless a tree begins with an older one."""
    if not 0 < old <= new:
        raise NotProven(f"a tree of {new} does not begin with one of {old}")
    if old == new:
        if proof or old_root != new_root:
            raise NotProven("two trees of one size have two roots")
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise NotProven("the proof is empty")
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise NotProven("the proof is too long")
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    if last or first != old_root or second != new_root:
        raise NotProven("history was rewritten: the newer ledger does not begin with the older one")


# -- checkpoints (https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint) --------------------------------------


def opened(note: str, verifier_key: str) -> tuple[int, bytes]:
    """Size and root of a checkpoint that was signed with this key."""
    name, key_hash, encoded = [*verifier_key.strip().split("+", 2), "", ""][:3]
    key = b64decode(encoded, validate=True)
    if sha256(name.encode() + b"\n" + key).digest()[:4].hex() != key_hash or key[:1] != b"\1":
        raise NotProven("the key is damaged, or not an Ed25519 key")
    text, _, signatures = note.partition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        dash, signer, encoded = [*line.split(" "), "", "", ""][:3]
        signature = b64decode(encoded, validate=True)
        if (dash, signer, signature[:4].hex()) != ("\N{EM DASH}", name, key_hash):
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], text.encode())
        except InvalidSignature:
            raise NotProven("the signature of the checkpoint is wrong") from None
        origin, size, root, *_ = text.split("\n")
        if origin != name:
            raise NotProven("the checkpoint is about another ledger")
        if size != str(int(size)) or len(b64decode(root, validate=True)) != HASH_SIZE:
            raise NotProven("this is not a checkpoint")
        return int(size), b64decode(root)
    raise NotProven("the checkpoint was not signed with this key")


# -- what is proven ----------------------------------------------------------------------------------------------------


def verify_receipt(receipt: dict[str, Any], verifier_key: str) -> dict[str, Any]:
    """What the ledger says about an entry, once it is proven to be in it.

    Raises:
        NotProven: it is not.
    """
    size, root = opened(receipt["checkpoint"], verifier_key)
    event_hash, statement = bytes.fromhex(receipt["event_hash"]), receipt["statement"]
    if len(event_hash) != HASH_SIZE:
        raise NotProven("this is not the hash of an event")
    leaf = leaf_hash(event_hash + sha256(statement.encode()).digest())
    proof = [bytes.fromhex(node) for node in receipt["proof"]]
    if root_of_inclusion(leaf, receipt["position"] - 1, size, proof) != root:
        raise NotProven("this entry is not in the ledger of the checkpoint")
    stated: dict[str, Any] = json.loads(statement)
    if stated["transaction_id"] != receipt["transaction_id"]:
        raise NotProven("the statement is about another transaction")
    if "event" in receipt:
        _require_event(receipt["event"], event_hash, stated)
    return stated


def _require_event(event: dict[str, Any], event_hash: bytes, stated: dict[str, Any]) -> None:
    """For auditors: the event as it is in the journal has this hash, and says what the statement says."""
    previous_hash = bytes.fromhex(event["previous_hash"])
    if len(previous_hash) != HASH_SIZE or "\0" in event["stream"]:
        raise NotProven("the parts of the event are not where they should be")
    said = event["stream"].encode() + b"\0" + event["version"].to_bytes(8, "big", signed=True)
    said += event["type"].encode() + b"\0" + event["state"].encode()
    if sha256(previous_hash + said).digest() != event_hash:
        raise NotProven("the event does not have this hash")
    state = {**json.loads(event["state"]), "type": event["type"]}
    if any(state.get(name) != value for name, value in stated.items()):
        raise NotProven("the statement does not say what the event says")


def verify_consistency(proof: dict[str, Any], verifier_key: str, old_checkpoint: str | None = None) -> tuple[int, int]:
    """The sizes of two ledgers, once the newer one is proven to begin with the older one.

    Args:
        old_checkpoint: the one that you have kept; without it, the one in the proof is taken.

    Raises:
        NotProven: it does not.
    """
    if old_checkpoint is None:
        old_checkpoint = proof["from_checkpoint"]
    new_checkpoint = proof["to_checkpoint"]
    if old_checkpoint is None or new_checkpoint is None:
        raise NotProven("there is no checkpoint of one of these sizes")
    (old, old_root), (new, new_root) = opened(old_checkpoint, verifier_key), opened(new_checkpoint, verifier_key)
    require_consistent(old, old_root, new, new_root, [bytes.fromhex(node) for node in proof["proof"]])
    return old, new


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", type=Path, help="a receipt or a consistency proof (JSON)")
    parser.add_argument("--key", required=True, help="the verifier key of the ledger")
    parser.add_argument("--old", type=Path, help="the older checkpoint, as you have kept it")
    given = parser.parse_args()
    try:
        proof = json.loads(given.proof.read_text(encoding="utf-8"))
        old_checkpoint = None if given.old is None else given.old.read_text(encoding="utf-8")
        # Who gives an older checkpoint asks about that one, whatever the other file says of itself.
        if old_checkpoint is None and "transaction_id" in proof:
            stated = verify_receipt(proof, given.key)
            print(f"proven: entry {proof['position']} of the ledger is")
            print(json.dumps(stated, indent=2))
        else:
            old, new = verify_consistency(proof, given.key, old_checkpoint)
            print(f"proven: the ledger of {new} events begins with the ledger of {old} events")
    except (NotProven, OSError) as problem:
        print(f"NOT PROVEN: {problem}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        print(f"NOT PROVEN: this is no proof of a ledger, or a damaged one ({problem!r})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
