"""The business, pure: no I/O, no clock, no randomness, nothing but the standard library and msgspec.

event     a fact, past tense, immutable            command   a wish, complete: clock, ids and prices are in it
stream    the events of one thing, in order        state     what a stream's events add up to
decision  (states, command) -> events, or a refusal that says why
hold      credits set aside for an open job        charge    the one payment of a job
settle    charge out of a hold, release the rest   terms     how a job is charged, fixed at its first call
alias     a public name for a provider's model     target    one provider model that could answer a call

Read `job.py` first: every page has the same order of events, state, commands, decisions.
"""
