"""An organization's own accounts at the providers."""

from typing import Any

import pytest

from domain.credential import (
    ActivateCredential,
    ChangeCredential,
    CreateCredential,
    CredentialActivated,
    CredentialChanged,
    CredentialCreated,
    CredentialDeactivated,
    CredentialDeleted,
    Credentials,
    DeactivateCredential,
    DeleteCredential,
    activate_credential,
    active_credential,
    canonical_provider,
    change_credential,
    create_credential,
    deactivate_credential,
    delete_credential,
    named_credential,
)
from domain.errors import AlreadyExists, NotFound
from domain.organization import OrganizationDeleted
from tests.domain.scene import ACME, NOON, ORGANIZATION, WHO, an_id
from tests.spec import Story, given

FIRST, SECOND, OTHER, STRANGER = an_id(1), an_id(2), an_id(3), an_id(9)
SECRET, NEW_SECRET = an_id(51), an_id(52)


def created(credential_id: str = FIRST, name: str = "main", provider: str = "openai") -> CredentialCreated:
    return CredentialCreated(
        at=NOON,
        organization_id=ACME,
        credential_id=credential_id,
        provider=provider,
        credential_name=name,
        secret_id=SECRET,
        api_base="https://gateway.example",
        created_by="olga",
    )


def create(credential_id: str = FIRST, name: str = "main", provider: str = "openai") -> CreateCredential:
    return CreateCredential(
        **WHO,
        credential_id=credential_id,
        provider=provider,
        credential_name=name,
        secret_id=SECRET,
        api_base="https://gateway.example",
        created_by="olga",
    )


def change(**what: Any) -> ChangeCredential:
    return ChangeCredential(**WHO, credential_id=FIRST, **what)


def activated(credential_id: str) -> CredentialActivated:
    return CredentialActivated(at=NOON, organization_id=ACME, credential_id=credential_id)


def deactivated(credential_id: str) -> CredentialDeactivated:
    return CredentialDeactivated(at=NOON, organization_id=ACME, credential_id=credential_id)


def deleted(credential_id: str) -> CredentialDeleted:
    return CredentialDeleted(at=NOON, organization_id=ACME, credential_id=credential_id)


ONE = given(ORGANIZATION, created())
TWO = given(ORGANIZATION, created(), created(SECOND, "spare"))


def in_use(story: Story, provider: str = "openai") -> str | None:
    credentials = story.states.get(Credentials)
    assert credentials is None or isinstance(credentials, Credentials)
    credential = active_credential(credentials, provider)
    return None if credential is None else credential.credential_id


def test_a_new_credential_is_the_one_in_use() -> None:
    story = given(ORGANIZATION).when(create_credential, create()).then(created())
    assert FIRST == in_use(story)
    assert SECOND == in_use(story.when(create_credential, create(SECOND, "spare")))


def test_the_same_creation_again_is_answered() -> None:
    ONE.when(create_credential, create()).then_nothing()


def test_credentials_need_an_organization() -> None:
    given().when(create_credential, create()).then_refused(NotFound, resource="organization")
    gone = given(ORGANIZATION, OrganizationDeleted(at=NOON, organization_id=ACME))
    gone.when(create_credential, create()).then_refused(NotFound, resource="organization")


@pytest.mark.parametrize("provider, taken", [("fireworks", "fireworks_ai"), ("fireworks_ai", "fireworks")])
def test_a_name_is_used_once_for_a_provider_by_whatever_name(provider: str, taken: str) -> None:
    given(ORGANIZATION, created(provider=taken)).when(
        create_credential, create(SECOND, provider=provider)
    ).then_refused(AlreadyExists, resource="provider_credential")


def test_the_same_name_serves_another_provider() -> None:
    ONE.when(create_credential, create(OTHER, provider="anthropic")).then(created(OTHER, provider="anthropic"))


def test_the_name_of_a_deleted_credential_may_be_used_again() -> None:
    given(ORGANIZATION, created(), deleted(FIRST)).when(create_credential, create(SECOND)).then(created(SECOND))


def test_a_change_touches_only_what_it_names() -> None:
    renamed = CredentialChanged(
        at=NOON,
        organization_id=ACME,
        credential_id=FIRST,
        credential_name="renamed",
        secret_id=SECRET,
        api_base="https://gateway.example",
        updated_by="otto",
    )
    ONE.when(change_credential, change(credential_name="renamed", updated_by="otto")).then(renamed)


def test_a_new_key_is_a_new_secret() -> None:
    story = ONE.when(change_credential, change(secret_id=NEW_SECRET, api_base=None))
    story.then(
        CredentialChanged(
            at=NOON,
            organization_id=ACME,
            credential_id=FIRST,
            credential_name="main",
            secret_id=NEW_SECRET,
            api_base=None,
        )
    )
    story.when(change_credential, change(secret_id=NEW_SECRET)).then_nothing()


def test_a_credential_is_not_renamed_to_a_taken_name() -> None:
    TWO.when(change_credential, change(credential_name="spare")).then_refused(
        AlreadyExists, resource="provider_credential"
    )
    TWO.when(change_credential, change(credential_name="main")).then_nothing()


def test_a_form_that_says_active_again_does_not_move_the_calls() -> None:
    story = TWO.when(change_credential, change(is_active=True)).then_nothing()
    assert SECOND == in_use(story)


def test_a_change_may_switch_off_and_on() -> None:
    story = TWO.when(change_credential, change(is_active=False)).then(deactivated(FIRST))
    story = story.when(change_credential, change(is_active=True)).then(activated(FIRST))
    assert FIRST == in_use(story)


def test_the_one_activated_last_is_used() -> None:
    story = TWO.when(activate_credential, ActivateCredential(**WHO, credential_id=FIRST)).then(activated(FIRST))
    assert FIRST == in_use(story)
    story.when(activate_credential, ActivateCredential(**WHO, credential_id=FIRST)).then_nothing()


def test_without_the_one_in_use_the_one_before_is_used() -> None:
    story = TWO.when(deactivate_credential, DeactivateCredential(**WHO, credential_id=SECOND)).then(deactivated(SECOND))
    assert FIRST == in_use(story)
    story.when(deactivate_credential, DeactivateCredential(**WHO, credential_id=SECOND)).then_nothing()
    story = story.when(delete_credential, DeleteCredential(**WHO, credential_id=FIRST)).then(deleted(FIRST))
    assert in_use(story) is None


def test_providers_do_not_share_credentials() -> None:
    story = given(ORGANIZATION, created(), created(OTHER, "main", "fireworks"))
    assert [FIRST, OTHER, OTHER, None] == [
        in_use(story, provider) for provider in ("openai", "fireworks", "fireworks_ai", "anthropic")
    ]
    assert "fireworks_ai" == canonical_provider("fireworks") == canonical_provider("fireworks_ai")


def test_no_credentials_means_none_in_use() -> None:
    assert in_use(given()) is None


def test_a_credential_is_found_by_name_even_while_inactive() -> None:
    credentials = given(created(), deactivated(FIRST)).states[Credentials]
    assert isinstance(credentials, Credentials)
    found = named_credential(credentials, "openai", "main")
    assert found is not None
    assert not found.is_active
    assert named_credential(credentials, "anthropic", "main") is None


@pytest.mark.parametrize(
    "history", [(), (ORGANIZATION, created()), (ORGANIZATION, created(STRANGER), deleted(STRANGER))]
)
@pytest.mark.parametrize(
    "decide, command",
    [
        (change_credential, ChangeCredential(**WHO, credential_id=STRANGER)),
        (activate_credential, ActivateCredential(**WHO, credential_id=STRANGER)),
        (deactivate_credential, DeactivateCredential(**WHO, credential_id=STRANGER)),
        (delete_credential, DeleteCredential(**WHO, credential_id=STRANGER)),
    ],
)
def test_an_unknown_credential_is_not_found(history: Any, decide: Any, command: Any) -> None:
    given(*history).when(decide, command).then_refused(NotFound, resource="provider_credential")
