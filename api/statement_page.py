"""A statement as a page to be printed or sent: one file, without scripts or anything from elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from api.statements import StatementAnswer, StatementEntry

TYPES = {
    "allocation": "Credits granted",
    "subscription_payment": "Subscription payment",
    "one_time_payment": "Payment",
    "adjustment": "Adjustment",
    "expiration": "Credits expired",
    "refund": "Refund",
    "deduction": "Charge",
}

_STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm; @bottom-right { content: "Page " counter(page) " of " counter(pages);
        font: 8pt system-ui, sans-serif; color: #667085 } }
* { box-sizing: border-box }
body { font: 10pt/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1d2433; margin: 0;
       background: #eef0f4; -webkit-print-color-adjust: exact; print-color-adjust: exact }
main { background: #fff; max-width: 210mm; margin: 8mm auto; padding: 16mm; box-shadow: 0 1px 8px #0002 }
header { display: flex; justify-content: space-between; align-items: flex-start; border-bottom: 2px solid #24406e;
         padding-bottom: 5mm }
h1 { font-size: 20pt; line-height: 1.15; margin: 0; color: #24406e; font-weight: 650 }
h2 { font-size: 12pt; margin: 9mm 0 2mm; color: #24406e; break-after: avoid }
p { margin: 0 } .quiet { color: #667085 }
.state { border-radius: 4px; padding: 1mm 3mm; font-size: 9pt; font-weight: 600; background: #e7f4ec; color: #17693a;
         white-space: nowrap }
.state.open { background: #fdf1dc; color: #8a5a00 }
.parties { display: flex; gap: 12mm; margin: 6mm 0 } .parties div { flex: 1; min-width: 0; overflow-wrap: anywhere }
.parties small { display: block; color: #667085; text-transform: uppercase; letter-spacing: .06em; font-size: 7.5pt }
.sums { display: flex; border: 1px solid #d5dae3; border-radius: 6px; overflow: hidden }
.sums div { flex: 1; padding: 3mm 4mm; border-left: 1px solid #d5dae3 } .sums div:first-child { border-left: 0 }
.sums small { display: block; color: #667085; font-size: 8pt } .sums b { font-size: 13pt; font-weight: 600 }
.sums .last { background: #24406e; color: #fff } .sums .last small { color: #ccd6e8 }
table { width: 100%; border-collapse: collapse } thead { display: table-header-group } tr { break-inside: avoid }
th { text-align: left; font-size: 8pt; color: #667085; font-weight: 600; border-bottom: 1px solid #98a2b3;
     padding: 1.2mm 2mm }
td { border-bottom: 1px solid #eceef2; padding: 1.4mm 2mm; vertical-align: top; overflow-wrap: anywhere }
th:first-child, td:first-child { padding-left: 0 } th:last-child, td:last-child { padding-right: 0 }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; overflow-wrap: normal }
.d { white-space: nowrap } .edge td { font-weight: 600; border-bottom: 1px solid #98a2b3 } td small { color: #667085 }
footer { margin-top: 10mm; padding-top: 3mm; border-top: 1px solid #d5dae3; font-size: 8pt; color: #667085;
         break-inside: avoid }
code { font: 7.5pt ui-monospace, "DejaVu Sans Mono", monospace; color: #1d2433; overflow-wrap: anywhere }
@media print { body { background: #fff } main { margin: 0; padding: 0; box-shadow: none; max-width: none } }
@media (max-width: 600px) { main { margin: 0; padding: 6mm } .sums, .parties { flex-wrap: wrap } }
"""


@dataclass(slots=True)
class Line:
    """What the page says of an entry, or of the charges of a day that follow one another."""

    day: str
    type: str
    note: str
    entries: int
    credits: int
    credits_after: int


def add_lines(lines: list[Line], entries: "Iterable[StatementEntry]") -> None:
    """Goes on with the lines of a statement. Charges of a day in a row are one line; the balance runs on."""
    for entry in entries:
        day = entry.created_at[:10]
        last = lines[-1] if lines else None
        if last is not None and last.type == entry.type == "deduction" and last.day == day:
            last.entries += 1
            last.credits += entry.credits
            last.credits_after = entry.credits_after
        else:
            note = " \u00b7 ".join(each for each in (entry.reason, entry.payment_reference) if each)
            lines.append(Line(day, entry.type, note, 1, entry.credits, entry.credits_after))


def page_of_statement(statement: "StatementAnswer", lines: list[Line], starts_at: datetime, ends_at: datetime) -> str:
    """The whole page. Whatever somebody chose is escaped."""
    team = statement.team_alias or statement.team_id
    totals = statement.totals
    last_day = ends_at - timedelta(days=1)
    changes = totals.granted_credits + totals.adjusted_credits + totals.refunded_credits - totals.expired_credits
    is_open = statement.status == "open"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Statement {escape(statement.period)} \u00b7 {escape(team)}</title><style>{_STYLE}</style></head>
<body><main>
<header><div><h1>Statement of credits</h1><p class="quiet">{starts_at:%B %Y}</p></div>
<span class="state {statement.status}">{"Preview, not closed yet" if is_open else "Closed"}</span></header>
<section class="parties">
<div><small>Customer</small>{_named(statement.organization_name, statement.organization_id)}</div>
<div><small>Team</small>{_named(statement.team_alias, statement.team_id)}</div>
<div><small>Period</small><p>{_day(starts_at)} \u2013 {_day(last_day)}</p><p class="quiet">days in UTC</p></div>
</section>
<section class="sums">
<div><small>Opening balance</small><b>{_whole(statement.opening_credits)}</b></div>
<div><small>Granted and corrected</small><b>{_signed(changes)}</b></div>
<div><small>Charged</small><b>{_signed(-totals.charged_credits)}</b></div>
<div class="last"><small>Closing balance</small><b>{_whole(statement.closing_credits)}</b></div>
</section>
<h2>Entries</h2>
<table><thead><tr><th>Date</th><th>Entry</th><th class="n">Credits</th><th class="n">Balance</th></tr></thead><tbody>
<tr class="edge"><td class="d">{_day(starts_at)}</td><td>Opening balance</td><td></td>
<td class="n">{_whole(statement.opening_credits)}</td></tr>
{"".join(_line(line) for line in lines)}
<tr class="edge"><td class="d">{_day(last_day)}</td><td>Closing balance</td><td></td>
<td class="n">{_whole(statement.closing_credits)}</td></tr>
</tbody></table>
{_usage(statement)}
{_footer(statement)}
</main></body></html>
"""


def _named(name: str | None, known_as: str) -> str:
    """A name with the id below it, or the id alone."""
    below = f'<p class="quiet">{escape(known_as)}</p>' if name and name != known_as else ""
    return f"<p><b>{escape(name or known_as)}</b></p>{below}"


def _line(line: Line) -> str:
    name = TYPES.get(line.type, line.type)
    if line.type == "deduction":
        name = f"Charge for {_whole(line.entries)} job{'s' if line.entries > 1 else ''}"
    note = f" <small>{escape(line.note)}</small>" if line.note else ""
    return (
        f'<tr><td class="d">{_day(datetime.fromisoformat(line.day))}</td><td>{escape(name)}{note}</td>'
        f'<td class="n">{_signed(line.credits)}</td><td class="n">{_whole(line.credits_after)}</td></tr>\n'
    )


def _usage(statement: "StatementAnswer") -> str:
    usage = statement.usage
    if not usage.by_job_type:
        return '<h2>Usage</h2><p class="quiet">No job was charged in this period.</p>'
    job_types = "".join(
        f'<tr><td>{escape(line.job_type)}</td><td class="n">{_whole(line.jobs)}</td>'
        f'<td class="n">{_whole(line.calls)}</td><td class="n">{_whole(line.tokens)}</td>'
        f'<td class="n">{_usd(line.cost_usd)}</td><td class="n">{_whole(line.credits)}</td></tr>\n'
        for line in usage.by_job_type
    )
    models = "".join(
        f'<tr><td>{escape(line.model)}</td><td class="n">{_whole(line.calls)}</td>'
        f'<td class="n">{_whole(line.prompt_tokens)}</td><td class="n">{_whole(line.completion_tokens)}</td>'
        f'<td class="n">{_usd(line.cost_usd)}</td></tr>\n'
        for line in usage.by_model
    )
    by_model = f"""<h2>Models called by these jobs</h2>
<table><thead><tr><th>Model</th><th class="n">Calls</th><th class="n">Tokens in</th><th class="n">Tokens out</th>
<th class="n">Cost, USD</th></tr></thead><tbody>{models}</tbody></table>"""
    return f"""<h2>Charged jobs</h2>
<table><thead><tr><th>Type of job</th><th class="n">Jobs</th><th class="n">Calls</th><th class="n">Tokens</th>
<th class="n">Cost, USD</th><th class="n">Credits</th></tr></thead><tbody>{job_types}</tbody></table>
{by_model if models else ""}"""


def _footer(statement: "StatementAnswer") -> str:
    if statement.status == "open":
        return "<footer><p>This is a preview. Figures may change until the period is closed.</p></footer>"
    return f"""<footer><p>Closed on {_day(datetime.fromisoformat(str(statement.closed_at)))}. It covers the ledger after
position {statement.after_position} up to position {statement.position}; everything written up to there is summed up in
this hash, which changes if any of it is ever altered:</p><p><code>{escape(str(statement.head_hash))}</code></p>
<p>Corrections made after the close are entries of the next statement.</p></footer>"""


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y}"


def _whole(number: int) -> str:
    return f"{number:,}".replace("-", "\u2212")


def _signed(number: int) -> str:
    return ("+" if number > 0 else "") + _whole(number)


def _usd(amount: Any) -> str:
    """A total as it is in the JSON answer, six decimals."""
    shown = Decimal(bytes(amount).decode()) if isinstance(amount, msgspec.Raw) else amount
    return f"{shown:,.6f}"
