"""Receipts over HTTP, verified by the file that customers get: by its functions, and as they run it."""

import json
import subprocess
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples import verify_receipt as verifier
from examples.verify_receipt import NotProven
from infra.merkle import leaf_hash
from infra.receipts import Signer
from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.api.people import code
from tests.provider import FakeProvider

ASK = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def charged(server: Server, admin: httpx.Client, provider: FakeProvider) -> tuple[TestTeam, str]:
    """A team, and the transaction of its charge."""
    team = make_team(server, admin, markup_percentage=37)
    job_id, alias = team.job(), make_alias(admin, provider)
    assert team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias}).status_code == 200
    assert team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).status_code == 200
    [charge] = team.client.get("/api/credits/transactions", params={"type": "deduction"}).json()["transactions"]
    return team, charge["transaction_id"]


def get(client: httpx.Client, path: str, **query: Any) -> Any:
    answer = client.get(f"/api/audit/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def key(client: httpx.Client) -> str:
    return str(get(client, "key")["verifier_key"])


def test_a_customer_proves_its_own_charge(admin: httpx.Client, charged: tuple[TestTeam, str]) -> None:
    team, transaction_id = charged
    receipt = get(team.client, f"receipts/{transaction_id}")
    stated = verifier.verify_receipt(receipt, key(team.client))
    assert (team.team_id, "CreditsCharged", 1, 99) == (
        stated["team_id"],
        stated["type"],
        stated["credits"],
        stated["remaining_credits"],
    )
    assert get(admin, f"receipts/{transaction_id}")["statement"] == receipt["statement"]


def test_a_receipt_tells_a_customer_no_markup_and_an_auditor_everything(
    admin: httpx.Client, charged: tuple[TestTeam, str]
) -> None:
    team, transaction_id = charged
    told = get(team.client, f"receipts/{transaction_id}")
    assert "event" not in told
    assert "markup" not in json.dumps(told)
    receipt = get(admin, f"receipts/{transaction_id}")
    assert "markup_percentage" in receipt["event"]["state"]
    verifier.verify_receipt(receipt, key(admin))


def test_all_entries_of_a_team_are_proven(admin: httpx.Client, charged: tuple[TestTeam, str]) -> None:
    team, _ = charged
    entries = team.client.get("/api/credits/transactions", params={"include": "holds"}).json()["transactions"]
    assert {"allocation", "hold", "deduction"} <= {entry["transaction_type"] for entry in entries}
    for entry in entries:
        stated = verifier.verify_receipt(get(team.client, f"receipts/{entry['transaction_id']}"), key(admin))
        assert entry["credits_after"] == stated["remaining_credits"]


@pytest.mark.parametrize("field", ["statement", "event_hash", "position", "proof", "checkpoint"])
def test_a_receipt_that_somebody_changed_proves_nothing(
    admin: httpx.Client, charged: tuple[TestTeam, str], field: str
) -> None:
    receipt = get(admin, f"receipts/{charged[1]}")
    changed = {
        "statement": receipt["statement"].replace('"credits":1', '"credits":0'),
        "event_hash": "00" * 32,
        "position": receipt["position"] - 1,
        "proof": receipt["proof"][1:],
        "checkpoint": receipt["checkpoint"].replace("\n", "\n1", 1),
    }[field]
    assert receipt[field] != changed
    with pytest.raises(NotProven):
        verifier.verify_receipt({**receipt, field: changed}, key(admin))


def test_a_receipt_of_another_ledger_proves_nothing(admin: httpx.Client, charged: tuple[TestTeam, str]) -> None:
    receipt = get(admin, f"receipts/{charged[1]}")
    other = "saas-litellm/0000+00000000+" + key(admin).split("+", 2)[2]
    with pytest.raises(NotProven):
        verifier.verify_receipt(receipt, other)


def test_nobody_gets_the_receipt_of_another_team(team: TestTeam, charged: tuple[TestTeam, str]) -> None:
    refused = team.client.get(f"/api/audit/receipts/{charged[1]}")
    assert (403, "forbidden") == code(refused)
    assert team.team_id == refused.json()["team_id"], "nor learns whose it is"


@pytest.mark.parametrize("transaction_id", ["nonsense", "00000000-0000-4000-8000-000000000000"])
def test_there_is_no_receipt_of_what_never_was(admin: httpx.Client, transaction_id: str) -> None:
    assert (404, "not_found") == code(admin.get(f"/api/audit/receipts/{transaction_id}"))


def test_the_ledger_of_an_earlier_visit_is_how_todays_begins(
    server: Server, admin: httpx.Client, charged: tuple[TestTeam, str]
) -> None:
    kept = get(admin, "checkpoint")
    make_team(server, admin)
    proof = get(admin, "consistency", **{"from": kept["size"]})
    assert (kept["size"], proof["to_size"]) == verifier.verify_consistency(proof, key(admin), kept["note"])
    assert proof["to_size"] > kept["size"]
    again = get(admin, "consistency", **{"from": kept["size"], "to": kept["size"]})
    assert [] == again["proof"]
    verifier.verify_consistency(again, key(admin))
    with pytest.raises(NotProven):
        verifier.verify_consistency({**proof, "proof": [*proof["proof"][:-1], "00" * 32]}, key(admin), kept["note"])


def test_a_checkpoint_is_a_signed_note(admin: httpx.Client, charged: tuple[TestTeam, str]) -> None:
    checkpoint, known = get(admin, "checkpoint"), get(admin, "key")
    origin, size, root, empty, signature, end = checkpoint["note"].split("\n")
    assert (known["name"], str(checkpoint["size"]), checkpoint["root"]) == (origin, size, b64decode(root).hex())
    assert ("", "", f"\N{EM DASH} {origin} ") == (empty, end, signature[: len(origin) + 3])
    assert get(admin, "checkpoint", size=checkpoint["size"]) == checkpoint
    assert get(admin, "head")["position"] >= checkpoint["size"]


@pytest.mark.parametrize(
    "path,status",
    [
        ("checkpoint?size=1000000000", 404),
        ("consistency", 422),
        ("consistency?from=0", 422),
        ("consistency?from=1000000000", 422),
        ("consistency?from=1&to=1000000000", 422),
    ],
)
def test_there_is_no_proof_of_what_has_not_happened_yet(admin: httpx.Client, path: str, status: int) -> None:
    assert status == admin.get(f"/api/audit/{path}").status_code


def test_what_was_signed_is_never_unsaid(server: Server, admin: httpx.Client) -> None:
    get(admin, "checkpoint")
    with psycopg.connect(server.dsn) as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("delete from app.checkpoints")


def test_there_is_no_receipt_of_a_history_that_was_rewritten_and_everybody_is_told(database: str) -> None:
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin)
        [entry] = admin.get("/api/credits/transactions", params={"team_id": team.team_id}).json()["transactions"]
        receipt, size = f"/api/audit/receipts/{entry['transaction_id']}", get(admin, "checkpoint")["size"]
        assert 200 == admin.get(receipt).status_code
        with psycopg.connect(database) as owner:
            owner.execute("alter table journal.events disable trigger user")
            more = "regexp_replace(convert_from(state, 'UTF8'), '\"credits\":1', '\"credits\":9')::bytea"
            owner.execute(f"update journal.events set state = {more} where topic = 'CreditsGranted'".encode())
        told = [admin.get(receipt), admin.get(f"/api/audit/consistency?from={size}")]
        make_team(server, admin)
        told += [admin.get("/api/audit/checkpoint"), admin.get("/api/audit/consistency?from=1")]
        with psycopg.connect(database) as owner:
            owner.execute("delete from journal.events where topic = 'CreditsGranted'")
        told.append(admin.get(receipt))
        with psycopg.connect(database) as owner:
            owner.execute(
                "update readmodel.transactions set position = 1 where transaction_id = %s", (entry["transaction_id"],)
            )
        told.append(admin.get(receipt))
        assert [(500, "history_rewritten")] * 6 == [code(answer) for answer in told]
        assert "saas_replay_mismatches_total" in server.client().get("/metrics").text


def test_the_file_that_customers_get_verifies_offline(
    admin: httpx.Client, charged: tuple[TestTeam, str], tmp_path: Path
) -> None:
    def run(proof: Any, *more: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proof.json").write_text(json.dumps(proof))
        command = [sys.executable, verifier.__file__, str(tmp_path / "proof.json"), "--key", key(admin), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    receipt, told = get(charged[0].client, f"receipts/{charged[1]}"), get(admin, f"receipts/{charged[1]}")
    proven, forged = run(receipt), run({**receipt, "statement": receipt["statement"].replace("1", "2")})
    assert (0, True) == (proven.returncode, proven.stdout.startswith("proven: "))
    assert (1, "") == (forged.returncode, forged.stdout)
    for damaged in (
        [],
        "receipt",
        {"transaction_id": 1},
        {**receipt, "proof": None},
        {**receipt, "position": "7"},
        {**told, "event": {**told["event"], "version": 1 << 64}},
    ):
        said = run(damaged)
        assert (1, "", 1) == (said.returncode, said.stdout, said.stderr.count("\n")), said.stderr
        assert said.stderr.startswith("NOT PROVEN: ")
    first = get(admin, "checkpoint")["size"]
    assert 0 == run(get(admin, "consistency", **{"from": first})).returncode


def test_who_gives_an_older_checkpoint_is_told_about_no_other(
    admin: httpx.Client,
    charged: tuple[TestTeam, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither by a file that is empty, nor by a proof that says it were one of something else."""

    def run(proof: str, kept: str) -> tuple[int, str]:
        files = {"proof.json": proof, "kept.txt": kept}
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        proof_file, kept_file = (str(tmp_path / name) for name in files)
        monkeypatch.setattr(sys, "argv", ["verify_receipt.py", proof_file, "--key", key(admin), "--old", kept_file])
        status, said = verifier.main(), capsys.readouterr()
        lines = [line for line in (said.out + said.err).splitlines() if "proven: " in line.lower()]  # the server logs
        return status, "\n".join(lines)

    checkpoint, receipt = get(admin, "checkpoint"), get(admin, f"receipts/{charged[1]}")
    consistency = get(admin, "consistency", **{"from": checkpoint["size"]})
    status, said = run(json.dumps(consistency), checkpoint["note"])
    assert (0, True) == (status, f"begins with the ledger of {checkpoint['size']} events" in said)
    for proof, kept in (
        (json.dumps(consistency), ""),
        (json.dumps(receipt), checkpoint["note"]),
        (json.dumps({**receipt, **consistency, "from_checkpoint": None}), "no checkpoint"),
        ("[" * 100_000, checkpoint["note"]),
    ):
        status, said = run(proof, kept)
        assert (1, 0) == (status, said.find("NOT PROVEN: ")), said


@pytest.mark.parametrize(
    "wrong,proven",
    [
        ({}, True),
        ({"stream": "credit-other"}, False),
        ({"stream": "acme", "previous_hash": bytes(32).hex() + b"credit-".hex()}, False),
        ({"stream": "credit-acme" + "\0" * 7, "version": 0x01_43_72_65_64_69_74_73, "type": "Charged"}, False),
    ],
)
def test_an_event_that_is_told_in_another_way_than_it_was_written_proves_nothing(
    wrong: dict[str, Any], proven: bool
) -> None:
    receipt, known = signed_receipt("CreditsCharged", {"credits": 1})
    told = {**receipt, "event": {**receipt["event"], **wrong}}
    assert proven == proves(told, known)


def test_an_event_does_not_say_of_itself_of_which_type_it_is() -> None:
    """Whoever has the key may sign any statement, but not one that an auditor takes for what the event says."""
    receipt, known = signed_receipt("CreditsHeld", {"credits": 1, "type": "CreditsCharged"})
    assert not proves(receipt, known)


def test_a_hash_of_an_event_is_not_of_any_length() -> None:
    receipt, known = signed_receipt("CreditsCharged", {"credits": 1})
    longer = {**receipt, "event_hash": receipt["event_hash"] + sha256(receipt["statement"].encode()).hexdigest()}
    assert not proves(longer, known)


def signed_receipt(kind: str, facts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The receipt of the only event of a ledger, as its operator might make it, and the key."""
    state = json.dumps({"transaction_id": "t-1", **facts})
    statement = json.dumps({"type": kind, "transaction_id": "t-1", **facts})
    event = {"stream": "credit-acme", "version": 1, "type": kind, "state": state, "previous_hash": bytes(32).hex()}
    said = b"credit-acme\0" + (1).to_bytes(8) + kind.encode() + b"\0" + state.encode()
    event_hash, signer = sha256(bytes(32) + said).digest(), Signer(Ed25519PrivateKey.generate())
    root = leaf_hash(event_hash + sha256(statement.encode()).digest())
    facts = {"statement": statement, "event_hash": event_hash.hex(), "event": event, "transaction_id": "t-1"}
    return {**facts, "position": 1, "proof": [], "checkpoint": signer.note(1, root)}, signer.verifier_key


def proves(receipt: dict[str, Any], known: str) -> bool:
    try:
        verifier.verify_receipt(receipt, known)
    except NotProven:
        return False
    return True
