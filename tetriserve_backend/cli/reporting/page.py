"""One self-contained HTML page: tables and the figures, inlined."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.simulator.summary import Summary

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1180px; }
body { margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; }
p { margin: 0.3rem 0 0.8rem; color: #57606a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
th, td { padding: 0.28rem 0.8rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th { font-weight: 600; border-bottom: 2px solid #8c959f; } th:first-child, td:first-child { text-align: left; }
tbody tr:first-child td { font-weight: 600; }
img { max-width: 100%; height: auto; }
"""

_COLUMNS = ("SLO met", "of bound", "mean s", "p50 s", "p90 s", "p99 s", "GPUs busy", "plan p99 ms", "runs", "requests")


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its heading and what it shows, in a sentence."""

    path: Path
    heading: str
    caption: str


def write_page(
    path: Path,
    summaries: Sequence[Summary],
    pictures: Sequence[Picture],
    *,
    title: str = "Simulated serving",
    tables: Sequence[Sheet] = (),
) -> None:
    """Write the page; it needs no other file. `tables` come below the overview.

    Raises:
        OSError: a figure cannot be read or the page not be written.
    """
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_subject(summaries))}</p>"] if summaries else []
    if summaries:
        body += [_table(summaries), "<p>Latencies and plan times are means over the runs.</p>"]
    for sheet in tables:
        body += [
            f"<h2>{escape(sheet.title)}</h2>",
            sheet.to_html(),
            *(f"<p>{escape(note)}</p>" for note in sheet.notes),
        ]
    for picture in pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        body += [
            f"<h2>{escape(picture.heading)}</h2>",
            f"<p>{escape(picture.caption)}</p>",
            f'<img alt="{escape(picture.heading, quote=True)}" src="data:image/png;base64,{data}">',
        ]
    head = f'<meta charset="utf-8"><title>TetriServe report</title><style>{_CSS}</style>'
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n",
        encoding="utf-8",
    )


def _subject(summaries: Sequence[Summary]) -> str:
    parts = [f"{', '.join(str(gpus) for gpus in sorted({s.gpus for s in summaries}))} GPUs"]
    for key, words in (
        ("mix", "mix {}"),
        ("rate_per_minute", "{} requests per minute"),
        ("slo_scale", "SLO scale {}"),
        ("seed", "seed {}"),
    ):
        values = {s.labels[key] for s in summaries if s.labels.get(key) is not None}
        if values:
            listed = sorted(values, key=lambda value: (isinstance(value, str), value))
            parts.append(words.format(", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in listed)))
    return "; ".join(parts)


def _table(summaries: Sequence[Summary]) -> str:
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.policy, []).append(summary)
    ordered = sorted(groups.items(), key=lambda item: -_mean([s.slo_attainment for s in item[1]]))
    rows = tuple((policy, *_cells(group)) for policy, group in ordered)
    return Sheet("overview", ("policy", *_COLUMNS), rows).to_html()


def _cells(group: Sequence[Summary]) -> list[str]:
    attained = _mean([s.slo_attainment for s in group])
    bounds = [s.bound for s in group if s.bound is not None]
    bounded = len(bounds) == len(group) and _mean(bounds) > 0
    return [
        f"{attained:.3f}",
        f"{attained / _mean(bounds):.3f}" if bounded else "",
        *(f"{_mean([s.latency_s[key] for s in group]):.2f}" for key in ("mean", "p50", "p90", "p99")),
        f"{_mean([s.gpu_utilization for s in group]):.0%}",
        f"{_mean([s.decision_ms['p99'] for s in group]):.2f}",
        str(len(group)),
        str(sum(s.requests for s in group)),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
