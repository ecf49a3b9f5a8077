"""What existing clients rely on, what systems of this kind get wrong, and the tests that prove each of it here.

One line, one or more named tests; `docs/proofs.md` is made of this, and a test sees to it that every test named here
exists and that no line is without one.
"""

HABITS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("Lists of named things are bare arrays", ("api/test_habits.py::lists_of_named_things_are_bare_arrays",)),
    2: ("Extra request fields are never rejected", ("api/test_habits.py::fields_that_nobody_knows_are_ignored",)),
    3: (
        "Statuses are lower case in answers and any case in filters",
        (
            "api/test_teams.py::teams_are_filtered_by_status_in_any_letter_case",
            "api/test_listing.py::words_come_in_any_letter_case",
        ),
    ),
    4: ("Creations answer 200, two of them 201", ("api/test_openapi.py::creations_are_200_but_for_two",)),
    5: (
        "A 400 says `already exists` or `already registered`",
        ("api/test_problems.py::the_words_that_scripts_look_for_are_there",),
    ),
    6: (
        "A 403 speaks of credit only when credits are the reason; every refusal is JSON",
        (
            "api/test_problems.py::a_403_speaks_of_credit_only_when_credits_are_the_reason",
            "api/test_fuzz.py::nonsense_is_refused_and_leaves_no_trace",
        ),
    ),
    7: (
        "A 401 means a bad credential and nothing else",
        ("api/test_habits.py::a_401_means_a_bad_credential_only",),
    ),
    8: (
        "A call names its model by `model`, by `model_group` or not at all",
        (
            "api/test_habits.py::a_model_has_two_names_and_needs_none",
            "api/test_resolution.py::without_a_name_the_default_is_meant_or_the_first_usable_alias",
        ),
    ),
    9: (
        "An answer is read in two dialects, and its content is never null",
        (
            "api/test_llm_calls.py::an_answer_speaks_both_dialects",
            "api/test_llm_calls.py::null_content_is_an_empty_text",
        ),
    ),
    10: (
        "Nulls are sent for what is absent; `stop` and `response_format` reach the model",
        (
            "api/test_habits.py::null_means_absent",
            "api/test_llm_calls.py::the_default_temperature_and_all_options_reach_the_provider",
        ),
    ),
    11: (
        "Chunks have the shape that is checked",
        ("api/test_llm_calls.py::a_stream_has_the_shape_that_clients_check",),
    ),
    12: ("Creations are strings, completions are figures", ("api/test_habits.py::a_job_is_read_as_clients_read_it",)),
    13: ("Failing what was completed is harmless", ("api/test_jobs.py::a_completed_job_does_not_fail_any_more",)),
    14: (
        "A team is read at the top and under `credits`, also while suspended",
        ("api/test_habits.py::a_team_is_read_at_the_top_and_under_credits",),
    ),
    15: (
        "suspend, resume and pause come as POST and PUT without a body",
        ("api/test_teams.py::status_changes_take_no_body_and_may_be_repeated",),
    ),
    16: (
        "Path families answer alike",
        (
            "api/test_model_aliases.py::an_alias_can_be_made_under_every_path_and_every_vocabulary",
            "api/test_credits.py::a_balance_answers_alike_on_every_path_it_has",
            "api/test_typed_client.py::both_words_for_the_address_are_understood",
        ),
    ),
    17: (
        "Vocabularies mean the same",
        (
            "api/test_credits.py::credits_are_added_in_every_vocabulary",
            "api/test_admin_users.py::other_names_for_the_same_are_understood",
        ),
    ),
    18: (
        "Model groups may come as access groups, or none at all",
        (
            "api/test_teams.py::groups_are_filed_under_their_true_kind",
            "api/test_teams.py::a_team_has_the_defaults_of_the_house",
        ),
    ),
    19: (
        "Members of model groups exist nowhere else, or there are none",
        (
            "api/test_model_groups.py::members_may_be_plain_names_in_their_order_or_none_at_all",
            "api/test_model_groups.py::a_member_list_is_replaced_and_who_stays_is_the_same",
        ),
    ),
    20: (
        "The dashboard speaks camelCase",
        ("api/test_stats.py::the_dashboard_counts_in_camel_case_what_was_not_deleted",),
    ),
    21: (
        "The master key comes in two headers; plain passwords and short keys are good enough",
        (
            "api/test_habits.py::the_master_key_comes_in_two_headers_and_a_short_key_is_a_key",
            "infra/test_passwords.py::eight_plain_characters_are_enough",
        ),
    ),
    22: (
        "`credits_used` of an old form changes nothing",
        ("api/test_teams.py::a_changed_allocation_is_an_adjustment_and_credits_used_is_no_setting",),
    ),
    23: ("Two changes of metadata both hold", ("api/test_jobs.py::metadata_is_merged_also_after_the_end",)),
    24: (
        "Usage is asked by page only, or by month, day or all",
        (
            "api/test_usage.py::jobs_of_a_period_come_in_pages_newest_first",
            "api/test_usage.py::periods_are_months_days_and_everything",
        ),
    ),
    25: (
        "Transactions come newest first with positive amounts",
        ("api/test_credits.py::transactions_come_newest_first_and_speak_of_what_remained",),
    ),
    26: (
        "What is worth a retry can be retried, other 4xx are final",
        (
            "api/test_idempotency.py::a_provider_that_fails_gives_the_key_back",
            "api/test_idempotency.py::a_refusal_is_kept_and_a_bad_body_is_not",
        ),
    ),
}

MISTAKES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "Completing again charges once",
        (
            "api/test_jobs.py::completing_three_times_charges_once_and_answers_the_same",
            "api/test_jobs.py::a_failed_job_is_free_and_stays_failed",
        ),
    ),
    2: (
        "Two who complete at once make one charge",
        (
            "api/test_jobs.py::two_clients_completing_at_once_are_both_answered_and_one_charge_is_made",
            "proofs/test_races.py::ten_credits_pay_for_ten_jobs_however_many_ask",
        ),
    ),
    3: (
        "Charge and end are one transaction, and the store refuses a second charge",
        (
            "infra/test_journal.py::a_job_is_charged_once_even_if_a_decision_has_a_bug",
            "infra/test_ledger.py::two_streams_of_one_decision_are_written_together",
            "proofs/test_kill_loop.py::what_was_acknowledged_survives_a_kill_of_everything",
        ),
    ),
    4: (
        "Fifty jobs change the balance by fifty",
        ("api/test_jobs.py::fifty_jobs_of_one_team_ending_together_change_the_balance_by_fifty",),
    ),
    5: (
        "Credits are held before the provider is asked",
        (
            "api/test_llm_calls.py::credits_are_held_before_the_provider_is_asked",
            "domain/test_charging.py::with_a_balance_of_one_only_one_of_two_jobs_may_call",
        ),
    ),
    6: (
        "Ended jobs take no calls, abandoned ones expire",
        (
            "domain/test_charging.py::ended_jobs_take_no_further_calls",
            "api/test_jobs.py::a_cancelled_job_is_free_and_takes_no_calls",
            "api/test_chores.py::what_an_abandoned_job_has_used_is_paid_for_in_consumption_modes",
        ),
    ),
    7: ("A charge is whole, or the request fails", ("api/test_jobs.py::a_job_without_credit_stays_open",)),
    8: (
        "A deliberately bad request makes nothing free",
        (
            "domain/test_charging.py::one_deliberately_bad_request_does_not_make_a_job_free",
            "api/test_llm_calls.py::a_failed_call_waives_the_charge_and_a_rejected_one_does_not",
        ),
    ),
    9: (
        "Who hangs up is billed, and nothing runs for ever",
        (
            "api/test_llm_calls.py::a_client_that_hangs_up_pays_for_what_was_said",
            "api/test_chores.py::a_call_that_nobody_carries_any_more_is_interrupted_and_its_job_expires_a_day_later",
        ),
    ),
    10: (
        "Streams are not buffered",
        (
            "api/test_llm_calls.py::the_first_text_arrives_while_the_provider_is_still_writing",
            "api/test_serve.py::a_stream_reaches_the_client_while_the_provider_is_still_sending",
        ),
    ),
    11: ("Every way of calling costs the same", ("api/test_mistakes.py::every_way_of_calling_costs_the_same",)),
    12: (
        "Missing usage and null content break nothing",
        (
            "api/test_llm_calls.py::missing_usage_is_counted_and_says_so_to_administrators",
            "api/test_llm_calls.py::null_content_is_an_empty_text",
            "infra/test_llm.py::a_ragged_stream_is_read",
        ),
    ),
    13: (
        "No binary float touches money",
        (
            "domain/test_pricing.py::dollars_become_credits_as_the_golden_table_says",
            "domain/test_pricing.py::a_call_costs_what_the_golden_table_says",
        ),
    ),
    14: (
        "Prices keep their decimals, zero is one, large calls are stored",
        (
            "api/test_model_aliases.py::prices_keep_all_their_decimals",
            "infra/test_llm_parts.py::zero_is_a_price",
            "domain/test_pricing.py::a_call_above_a_hundred_dollars_keeps_every_digit",
        ),
    ),
    15: (
        "Prices are found by exact name",
        (
            "api/test_model_aliases.py::a_price_is_the_aliass_own_else_that_of_exactly_this_model",
            "infra/test_llm_parts.py::an_unknown_name_has_no_price",
        ),
    ),
    16: (
        "The same total stands everywhere",
        (
            "api/test_jobs.py::the_same_total_stands_everywhere",
            "api/test_usage.py::the_same_total_is_shown_everywhere",
            "api/test_reports.py::every_grouping_adds_up_to_the_same_totals",
        ),
    ),
    17: (
        "Every change of credits is an entry, and the balance is their replay",
        (
            "api/test_teams.py::opening_credits_are_a_ledger_entry",
            "projections/test_transactions.py::balances_are_what_a_replay_adds_up_to",
            "api/test_teams.py::a_changed_allocation_is_an_adjustment_and_credits_used_is_no_setting",
        ),
    ),
    18: (
        "before and after mean remaining; a refund never exceeds its charge",
        (
            "projections/test_transactions.py::every_movement_is_a_row_and_each_row_begins_where_the_one_before_ended",
            "api/test_credits.py::a_refund_never_exceeds_the_charge",
        ),
    ),
    19: (
        "Adding credits creates no team, takes no zero, and no team's key",
        (
            "api/test_credits.py::adding_credits_to_an_unknown_team_creates_nothing",
            "api/test_credits.py::what_is_no_amount_adds_nothing",
            "api/test_credits.py::no_team_key_can_add_credits",
        ),
    ),
    20: (
        "Payments add once, refills come once",
        (
            "api/test_credits.py::a_payment_notice_delivered_twice_adds_once_and_is_answered_as_before",
            "api/test_chores.py::a_refill_comes_once_a_period_however_many_processes_ask",
        ),
    ),
    21: (
        "Idempotency keys survive a restart and cover duplicates",
        (
            "api/test_idempotency.py::keys_survive_a_restart",
            "api/test_idempotency.py::sixty_four_duplicates_at_once_call_the_provider_once",
        ),
    ),
    22: (
        "Every endpoint asks for a credential, and for the right one",
        (
            "api/test_isolation.py::without_a_credential_there_is_nothing",
            "api/test_isolation.py::a_wrong_credential_is_none",
            "api/test_isolation.py::a_key_does_nothing_that_is_for_administrators",
        ),
    ),
    23: (
        "No stored key is ever shown",
        (
            "api/test_secrecy.py::no_secret_is_in_the_journal_the_log_or_an_answer_that_did_not_make_it",
            "api/test_provider_credentials.py::no_key_is_in_any_answer_log_or_table",
            "api/test_idempotency.py::a_fresh_key_is_replayed_and_stored_only_encrypted",
            "api/test_webhooks.py::secret_and_auth_header_are_stored_only_encrypted",
        ),
    ),
    24: (
        "Who may read only reads; admins touch no owner; every write is logged",
        (
            "api/test_isolation.py::who_may_only_read_writes_nothing",
            "api/test_admin_users.py::an_admin_keeps_role_user_and_touches_nobody_else",
            "api/test_audit_log.py::every_write_of_an_administrator_leaves_an_entry_and_no_secret",
        ),
    ),
    25: (
        "Sessions end, logins are throttled, one owner is set up, forged tokens are refused",
        (
            "api/test_admin_users.py::sessions_end_at_once_on_every_server",
            "api/test_admin_users.py::the_eleventh_failure_has_to_wait_even_with_the_right_password",
            "api/test_admin_users.py::of_simultaneous_setups_exactly_one_wins",
            "api/test_isolation.py::a_wrong_credential_is_none",
        ),
    ),
    26: (
        "Known secrets stop the start, and none is in the repository",
        (
            "infra/test_settings.py::an_external_database_is_not_opened_with_a_key_that_can_be_guessed",
            "api/test_mistakes.py::no_credential_is_in_the_repository",
        ),
    ),
    27: (
        "Nothing of the provider reaches a team",
        (
            "api/test_llm_calls.py::a_provider_that_fails_costs_the_team_nothing_and_tells_it_nothing",
            "api/test_llm_calls.py::a_stream_that_breaks_ends_with_an_error_and_is_free",
            "api/test_model_aliases.py::a_team_sees_names_and_nothing_of_the_provider",
        ),
    ),
    28: (
        "Bad uuids are not found, nonsense is refused, nothing crashes",
        (
            "api/test_mistakes.py::a_bad_uuid_in_any_path_is_not_found",
            "api/test_fuzz.py::nonsense_is_refused_and_leaves_no_trace",
            "api/test_schemathesis.py::answers_are_those_described",
        ),
    ),
    29: (
        "A failure too long to record is cut and recorded",
        (
            "api/test_mistakes.py::a_long_error_is_cut_and_its_call_on_record",
            "infra/test_llm.py::a_long_failure_is_cut",
        ),
    ),
    30: (
        "Every list filters, sorts and pages",
        (
            "api/test_mistakes.py::every_list_has_pages_with_bounds_and_a_full_count",
            "api/test_jobs.py::lists_filter_sort_and_page",
            "api/test_listing.py::wildcards_mean_themselves",
        ),
    ),
    31: (
        "A list takes as many queries, however long it is",
        (
            "api/test_mistakes.py::a_list_takes_as_many_queries_however_long_it_is",
            "infra/test_passwords.py::the_event_loop_goes_on_while_passwords_are_hashed",
        ),
    ),
    32: (
        "What is accepted is stored and given back",
        (
            "api/test_teams.py::everything_given_is_stored_and_given_back",
            "api/test_model_aliases.py::an_alias_gives_back_all_that_was_said_of_it",
            "api/test_provider_credentials.py::a_credential_gives_back_all_but_its_key",
        ),
    ),
    33: (
        "An organization's usage is that of its teams",
        (
            "api/test_usage.py::an_organization_sees_all_its_teams_and_a_team_its_share",
            "api/test_usage.py::periods_are_months_days_and_everything",
        ),
    ),
    34: (
        "Fallbacks are tried, groups and statuses count",
        (
            "api/test_resolution.py::the_next_member_answers_when_one_cannot",
            "api/test_access_groups.py::access_follows_membership_and_the_groups_status",
            "api/test_organizations.py::the_status_of_an_organization_binds_its_teams",
        ),
    ),
    35: (
        "A deleted team leaves no half state",
        (
            "api/test_teams.py::a_deleted_team_leaves_its_history",
            "api/test_teams.py::more_open_jobs_than_one_page_are_cancelled_with_their_team",
        ),
    ),
    36: (
        "Stores may go and come back",
        (
            "infra/test_limits.py::redis_killed_limits_go_on_here_and_redis_back_they_are_shared_again",
            "api/test_serve.py::the_embedded_postgresql_comes_back_while_the_server_runs",
            "api/test_faults.py::postgresql_is_stopped_and_started_again_and_nothing_is_lost_or_done_twice",
            "api/test_faults.py::redis_is_killed_and_started_again_and_limits_hold_all_the_time",
        ),
    ),
    37: (
        "Webhooks are signed, repeated, lost never, and reach no private address",
        (
            "infra/test_webhooks.py::a_delivery_is_signed_as_standard_webhooks_demands",
            "proofs/test_webhooks.py::no_notification_is_lost_when_everything_is_killed",
            "infra/test_webhooks.py::a_name_that_has_moved_to_a_private_address_is_refused_at_the_attempt",
            "infra/test_webhooks.py::a_redirect_is_a_failure_and_is_not_followed",
        ),
    ),
    38: (
        "One format of time, one document of everything, no dead links, harmless migrations",
        (
            "api/test_mistakes.py::all_times_have_one_format",
            "api/test_openapi.py::every_route_is_described",
            "test_docs.py::links_lead_somewhere",
            "infra/test_postgres.py::our_own_migrations_can_be_repeated",
        ),
    ),
}
