"""What must be true of the books, asked of the journal and of the read models directly, without our code."""

from tests.proofs.house import House

CHARGED_TWICE = """
select journal.job_of(state) from journal.events where topic = 'CreditsCharged' group by 1 having count(*) > 1
"""

# Balances folded from the journal by SQL, beside what the read model says.
WRONG_BALANCES = """
with movements as (
    select convert_from(state, 'UTF8')::jsonb as event, topic
    from journal.events
    where originator_id like 'credit-%' and topic <> 'AccountOpened'
), folded as (
    select event ->> 'team_id' as team_id,
           sum(case topic when 'CreditsGranted' then (event ->> 'credits')::bigint
                          when 'CreditsAdjusted' then (event ->> 'credits')::bigint
                          when 'CreditsExpired' then -(event ->> 'credits')::bigint else 0 end) as allocated,
           sum(case topic when 'CreditsCharged' then (event ->> 'credits')::bigint
                          when 'CreditsRefunded' then -(event ->> 'credits')::bigint else 0 end) as used,
           sum(case topic when 'CreditsHeld' then (event ->> 'credits')::bigint
                          when 'HoldReleased' then -(event ->> 'credits')::bigint
                          when 'CreditsCharged' then -(event ->> 'credits_from_hold')::bigint else 0 end) as held
    from movements group by 1
)
select balance.team_id, folded.allocated, balance.credits_allocated, folded.used, balance.credits_used, folded.held,
       balance.credits_held
from readmodel.balances as balance
join folded using (team_id)
where (folded.allocated, folded.used, folded.held)
      is distinct from (balance.credits_allocated, balance.credits_used, balance.credits_held)
"""

BROKEN_CHAIN = """
select event.notification_id
from (
    select *, lag(hash, 1, decode(repeat('00', 32), 'hex')) over (order by notification_id) as previous,
           row_number() over (order by notification_id) as position,
           row_number() over (partition by originator_id order by notification_id) as version
    from journal.events
) as event
where event.position <> event.notification_id or event.version <> event.originator_version
   or event.hash <> sha256(event.previous || convert_to(event.originator_id, 'UTF8') || '\\x00'::bytea
                           || int8send(event.originator_version) || convert_to(event.topic, 'UTF8')
                           || '\\x00'::bytea || event.state)
limit 1
"""

HEAD_IS_LAST = """
select head.position = coalesce(max(event.notification_id), 0)
from journal.head as head left join journal.events as event on true group by head.position
"""


def check_books(house: House) -> None:
    """Nothing charged twice, the chain whole, and read models that say what the journal says."""
    with house.admin() as admin:
        # A list waits until the read models have seen everything.
        assert admin.get("/api/jobs?limit=1").status_code == 200
    assert house.query(CHARGED_TWICE) == []
    assert house.query(BROKEN_CHAIN) == []
    assert house.query(HEAD_IS_LAST) == [(True,)]
    assert house.query(WRONG_BALANCES) == []
