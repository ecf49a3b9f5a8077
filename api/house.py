"""Everything that lives as long as the process, in one place; built by app.py, handed to whoever asks for `house`."""

from dataclasses import dataclass

from api.targets import Targets
from infra.background import Background
from infra.conversations import Conversations
from infra.ledger import Ledger
from infra.limits import Limits
from infra.llm import Models
from infra.passwords import Passwords
from infra.postgres import Pool
from infra.presence import Presence
from infra.receipts import Notary
from infra.secrets import KeyRing, SecretStore
from infra.settings import Settings
from infra.tokens import Tokens
from infra.webhooks import Sender
from projections.engine import Engine, Progress


@dataclass(frozen=True, slots=True)
class House:
    settings: Settings
    pool: Pool
    ledger: Ledger
    engine: Engine
    progress: Progress
    models: Models
    limits: Limits
    key_ring: KeyRing
    secrets: SecretStore
    passwords: Passwords
    tokens: Tokens
    targets: Targets
    sender: Sender
    conversations: Conversations
    background: Background
    notary: Notary
    presence: Presence
