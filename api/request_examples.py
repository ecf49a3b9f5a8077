"""What a request may look like, for everybody who reads the OpenAPI document or tries it out."""

from typing import Any

_MESSAGES = [{"role": "user", "content": "Summarise this contract in three sentences."}]

EXAMPLES: dict[str, dict[str, Any]] = {
    "CreateJobBody": {
        "team_id": "acme-corp",
        "job_type": "contract_review",
        "user_id": "user-17",
        "metadata": {"document": "nda-2024.pdf"},
    },
    "CompleteJobBody": {"status": "completed", "metadata": {"pages": 12}},
    "CancelJobBody": {"reason": "The user closed the window"},
    "MetadataBody": {"metadata": {"reviewed": True}},
    "CallBody": {"model": "chat-fast", "messages": _MESSAGES, "max_tokens": 500, "purpose": "summary"},
    "CreateAndCallBody": {
        "team_id": "acme-corp",
        "job_type": "summary",
        "model": "chat-fast",
        "messages": _MESSAGES,
    },
    "ChatBody": {"model": "chat-fast", "messages": _MESSAGES, "stream": True},
    "CreateTeamBody": {
        "organization_id": "acme",
        "team_id": "acme-corp",
        "team_alias": "Acme, legal department",
        "access_groups": ["standard"],
        "credits_allocated": 1000,
    },
    "ReviseTeamBody": {"rpm_limit": 120, "budget_mode": "consumption_usd", "credits_per_dollar": 10},
    "MarkupBody": {"cost_markup_percentage": 50},
    "ReasonBody": {"reason": "Invoice overdue"},
    "AccessGroupsBody": {"access_groups": ["standard"]},
    "ModelGroupsBody": {"model_groups": ["chat"]},
    "IssueKeyBody": {"name": "production"},
    "RotateKeyBody": {"grace_seconds": 3600},
    "CreateOrganizationBody": {
        "organization_id": "acme",
        "name": "Acme Corporation",
        "create_default_team": True,
        "default_team_credits": 100,
    },
    "ChangeOrganizationBody": {"name": "Acme Corporation Ltd"},
    "StatusBody": {"status": "suspended", "reason": "Invoice overdue"},
    "AddBody": {"team_id": "acme-corp", "amount": 100, "description": "Welcome package"},
    "GrantBody": {"amount": 100, "description": "Welcome package"},
    "RatesBody": {"tokens_per_credit": 10000, "credits_per_dollar": 10},
    "BudgetModeBody": {"budget_mode": "consumption_tokens", "tokens_per_credit": 5000},
    "ReplenishBody": {
        "credits": 500,
        "payment_type": "one_time",
        "payment_amount_usd": 49.9,
        "payment_reference": "invoice-2024-117",
    },
    "AutoRefillBody": {"enabled": True, "refill_amount": 1000, "refill_period": "monthly"},
    "RefundBody": {"job_id": "550e8400-e29b-41d4-a716-446655440000", "credits": 1, "reason": "Wrong answer"},
    "CreateAccessGroupBody": {"group_name": "standard", "model_aliases": ["chat-fast"]},
    "ChangeAccessGroupBody": {"display_name": "Standard models", "status": "active"},
    "AliasNamesBody": {"model_aliases": ["chat-fast"]},
    "AliasBody": {
        "alias": "chat-fast",
        "litellm_model": "openai/gpt-4o-mini",
        "pricing_input": 0.15,
        "pricing_output": 0.6,
        "access_groups": ["standard"],
    },
    "CreateModelGroupBody": {"group_name": "chat", "models": ["chat-fast", "openai/gpt-4o"]},
    "ChangeModelGroupBody": {"display_name": "Chat models"},
    "GroupMembersBody": {"models": [{"model_name": "chat-fast", "priority": 0}]},
    "CreateCredentialBody": {
        "organization_id": "acme",
        "provider": "openai",
        "credential_name": "main",
        "api_key": "sk-the-key-of-the-provider",
    },
    "ChangeCredentialBody": {"credential_name": "main, until June"},
    "RegisterWebhookBody": {
        "team_id": "acme-corp",
        "webhook_url": "https://your-app.com/webhooks/job-complete",
        "events": ["job.completed", "job.failed"],
    },
    "ChangeWebhookBody": {"events": ["job.completed"], "is_active": True},
    "NewUserBody": {"email": "olga@example.com", "display_name": "Olga", "password": "correct horse"},
    "CreateUserBody": {
        "email": "ada@example.com",
        "display_name": "Ada",
        "password": "correct horse",
        "role": "auditor",
    },
    "LoginBody": {"email": "olga@example.com", "password": "correct horse"},
    "ChangeUserBody": {"role": "admin"},
    "ChangePasswordBody": {"current_password": "correct horse", "new_password": "battery staple"},
    "ResetPasswordBody": {"new_password": "battery staple"},
    "BookBody": {"lines": [{"day": "2024-10-14", "model": "gpt-4o-mini"}], "note": "Agreed by mail"},
}
"""By the name of the body."""

STREAM = """: ok

data: {"id":"c1","object":"chat.completion.chunk","created":1728907200,"model":"chat-fast",\
"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"},"finish_reason":null}],"content":"Hello"}

data: {"id":"c1","object":"chat.completion.chunk","created":1728907200,"model":"chat-fast",\
"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}

data: [DONE]

"""
"""What an answer looks like that is sent as it is written."""
