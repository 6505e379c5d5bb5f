"""The report of the claims: all numbers as data, as a page, and as a plain table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from mmpl.eval.claims import BASE, Digests, Record
from mmpl.eval.claims_arms import ARMS, NETWORK_ARMS, method_of
from mmpl.eval.claims_costs import cost_tables
from mmpl.eval.claims_verdict import (
    MEASURES,
    RULE,
    Row,
    judge,
    values_of,
)
from mmpl.eval.statistics import Interval, Key, interval, paired
from mmpl.media.charts import LINE_COLOURS, Line
from mmpl.media.report import Section, results_html

Methods = Mapping[str, Mapping[Key, Record]]

_CURVES = (
    *("background_drift", "background_hue_drift_deg", "object_hue_drift_deg", "hue_l1_180"),
    *("object_lost", "shape_wrong"),
)
_TOLD = (  # in the table of methods
    *("background_drift", "background_hue_drift_deg", "object_hue_drift_deg", "hue_l1_180"),
    *(
        "object_lost",
        "shape_wrong",
        "segment_jump_ratio",
        "segment_hue_l1",
        "group_jump_ratio",
        "group_hue_l1",
    ),
)
_GENERATIONS = "background's colour from that of the first generation, distance in RGB of 0..1"
_DIGITS = 12  # of a SHA-256
_MEASURED = (
    "Wall time from the first stage to the last of one film by one process and by several of one "
    "thread each, in turns; medians. Simulated: what the schedule promises at the stage times of "
    "the one process alone. The paper's figures (Table 10) are of GPUs."
)
_CURVE_DRAWS = 500  # of the bootstrap; there are thousands of points
_NOT_HERE = "Not tested here: VBench's scores and human votes, which need what they are made with"


def summary(
    methods: Methods,
    settings: Mapping[str, Any],
    wanted: int,
    networks: Mapping[str, Digests] = MappingProxyType({}),
    speed_ups: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """All results as JSON. `methods`: of each arm the records of its films; `settings` are those
    all films share, `wanted` how many films the budget has. `networks`: of arms with a network of
    their own the digests of its parts; all others have the weights in `settings`. `speed_ups`:
    what was measured on several processes."""
    segments = settings["segments"]
    return {
        "settings": dict(settings),
        "films": sum(len(records) for records in methods.values()),
        "films_wanted": wanted,
        "interval_level": 0.95,
        "rule": RULE,
        "definitions": {name: measure.words for name, measure in MEASURES.items()},
        "claims": [_claim(row) for row in judge(methods, segments)],
        "methods": {
            name: _method(name, records, methods.get(BASE, {}), segments)
            | {"method": method_of(name)}
            | {"weights": _weights(name, networks.get(name, settings["weights"]))}
            for name, records in methods.items()
        },
        "costs": [asdict(cost) for cost in cost_tables()],
        "speed_ups": list(speed_ups),
        "not_tested": _not_tested(methods),
    }


def page(found: Mapping[str, Any], version: str) -> str:
    """The report as one HTML page."""
    return results_html("The paper's claims, tested", _facts(found), [*_sections(found)], version)


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the report as text: claims, methods, costs."""
    yield f"{'claim':32s} {'verdict':13s} difference [95 % interval], programs: measure"
    for row in found["claims"]:
        if not row["decides"] and row["difference"] is None:
            continue
        name = row["claim"] if row["decides"] else "  also"
        yield f"{name:32s} {row['verdict']:13s} {_shown(row['difference'])}: {row['measure']}"
    yield ""
    yield f"{'method, at the end of the film':32s} films failed chain/segment evaluations seconds"
    for name, method in found["methods"].items():
        yield (
            f"{name:32s} {method['films']:5d} {method['failed']:6d} "
            f"{method['generations_per_segment']:13.3g} {_number(method['evaluations']):>11s} "
            f"{_number(method['seconds']):>7s}"
        )
        weights = method["weights"]
        if ARMS[name].weights:
            dit = weights.get("dit", "-")[:_DIGITS]
            yield f"  {method['method']} on {weights['network']}, transformer {dit}"
        for measure in _TOLD:
            value = method["measures"][measure]
            if value is not None:
                yield f"  {measure:30s} {_shown(value)}"
    yield ""
    yield f"{'table, by arithmetic':62s} {'paper':>8s} {'ours':>8s}"
    for cost in found["costs"]:
        what = f"{cost['table']}: {cost['what']}, {cost['unit']}"
        yield f"{what:62s} {cost['paper']:8g} {cost['ours']:8.1f}"
    if found["speed_ups"]:
        yield ""
        head = "speed-up, one film by one process and by several"
        yield f"{head:62s} {'paper':>8s} {'simulated':>10s} measured"
    for one in found["speed_ups"]:
        for what, numbers in _speed_up(one).items():
            paper, simulated, own = numbers
            yield f"{what:62s} {paper:>8s} {simulated:>10s} {own}"
    yield ""
    yield found["rule"]
    yield found["not_tested"]


def _weights(name: str, digests: Digests) -> dict[str, Any]:
    """Which network an arm has: in words, and by its digests."""
    return {"network": ARMS[name].weights or "the one that methods share", **digests}


def _not_tested(methods: Methods) -> str:
    """What this report says nothing about."""
    missing = [name for name in NETWORK_ARMS if not methods.get(name)]
    if not missing:
        return f"{_NOT_HERE}."
    return f"{_NOT_HERE}; {', '.join(missing)}, which need networks of their own (--networks)."


def _claim(row: Row) -> dict[str, Any]:
    claim = row.claim
    return {
        "claim": claim.name,
        "says": claim.says,
        "decides": row.measure == claim.measures[0],
        "first": claim.left,
        "second": claim.right,
        "expected": claim.expect,
        "measure": row.measure,
        "margin": MEASURES[row.measure].margin,
        "difference": _numbers(row.difference),
        "verdict": row.verdict,
    }


def _method(
    name: str, records: Mapping[Key, Record], base: Mapping[Key, Record], segments: int
) -> dict[str, Any]:
    """What is known of a method; `differences` are its errors less those of `BASE`."""
    good = {key: record for key, record in records.items() if "failed" not in record}
    each = {measure: values_of(records, measure, segments) for measure in MEASURES}
    of_base = {measure: values_of(base, measure, segments) for measure in MEASURES}
    chained = max((len(record["by_generation"]) for record in good.values()), default=0)
    return {
        "films": len(records),
        "failed": len(records) - len(good),
        "generations_per_segment": ARMS[name].generations,
        "evaluations": _mean([r["evaluations"] for r in good.values() if "evaluations" in r]),
        "seconds": _mean([record["seconds"] for record in good.values()]),
        "measures": {measure: _numbers(interval(values)) for measure, values in each.items()},
        "differences": {
            measure: _numbers(paired(of_base[measure], values)) for measure, values in each.items()
        },
        "by_segment": {
            measure: [
                _numbers(interval(values_of(records, measure, number + 1), draws=_CURVE_DRAWS))
                for number in range(segments)
            ]
            for measure in _CURVES
        },
        "background_drift_by_generation": [
            _numbers(interval(_of_generation(good, number), draws=_CURVE_DRAWS))
            for number in range(chained)
        ],
    }


def _of_generation(records: Mapping[Key, Record], number: int) -> dict[Key, float]:
    found = {key: record["by_generation"] for key, record in records.items()}
    return {
        key: degrees[number]
        for key, degrees in found.items()
        if number < len(degrees) and degrees[number] is not None
    }


def _facts(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    facts = [
        f"{found['films']} of {found['films_wanted']} films",
        f"{settings['segments']} segments each",
        "95 % bootstrap intervals over programs",
    ]
    return facts + [f"{name} {value}" for name, value in settings["sampling"].items()]


def _sections(found: Mapping[str, Any]) -> Iterator[Section]:
    deciding = [row for row in found["claims"] if row["decides"]]
    yield Section(
        "Claims",
        found["rule"],
        head=("claim", "verdict", "methods", "measure", "difference [interval], programs"),
        rows=[_claim_cells(row, row["says"]) for row in deciding],
        strong=1,
    )
    methods = found["methods"]
    for words, names in _charts_of(methods):
        charts = [
            (MEASURES[name].words, "segment", _lines(methods, names, ("by_segment", name), 1))
            for name in _CURVES
        ]
        by_generation = _lines(methods, names, ("background_drift_by_generation",), 0)
        charts.append((_GENERATIONS, "generations chained", by_generation))
        yield Section(words, "Means and intervals; the first segment is 1.", charts=charts)
    yield Section(
        "Claims by all their measures",
        "The first measure of each decides it.",
        head=("claim", "verdict", "methods", "measure", "difference [interval], programs"),
        rows=[_claim_cells(row, row["claim"]) for row in found["claims"]],
        strong=1,
    )
    yield from _method_sections(methods)
    if found["speed_ups"]:
        yield Section(
            "Speed-up, measured",
            _MEASURED,
            head=("what", "paper", "simulated", "measured"),
            rows=[
                (what, *numbers)
                for one in found["speed_ups"]
                for what, numbers in _speed_up(one).items()
            ],
        )
    yield Section(
        "Costs by arithmetic",
        "The paper's Tables 10 to 12 beside what the schedule and the cost model give; nothing "
        "here is measured. " + found["not_tested"],
        head=("table", "what", "unit", "paper", "ours"),
        rows=[
            (c["table"], c["what"], c["unit"], f"{c['paper']:g}", f"{c['ours']:.1f}")
            for c in found["costs"]
        ],
    )


def _method_sections(methods: Mapping[str, Any]) -> Iterator[Section]:
    yield Section(
        "Methods",
        "Generations: steps of the error chain for a segment of film. Evaluations: of the network, "
        "latent frames times passes of each branch of guidance. Seconds: wall time of a film.",
        head=("method", "films", "failed", "generations", "evaluations", "seconds"),
        rows=[
            (
                name, f"{m['films']}", f"{m['failed']}", f"{m['generations_per_segment']:.3g}",
                _number(m["evaluations"]), _number(m["seconds"]),
            )
            for name, m in methods.items()
        ],
    )  # fmt: skip
    yield Section(
        "Weights",
        "The network of each arm, by the first digits of the SHA-256 of its parts.",
        head=("arm", "method", "network", "transformer", "text encoder"),
        rows=[
            (
                name, m["method"], m["weights"]["network"],
                *(str(m["weights"].get(part, "-"))[:_DIGITS] for part in ("dit", "text")),
            )
            for name, m in methods.items()
        ],
    )  # fmt: skip
    for words, kind in (("Errors", "measures"), (f"Errors less those of {BASE}", "differences")):
        rows = [
            (name, measure, _shown(value))
            for name, method in methods.items()
            for measure, value in method[kind].items()
            if value is not None and not (kind == "differences" and name == BASE)
        ]
        head = ("method", "measure", "mean [interval], programs")
        yield Section(words, "At the end of the film.", head=head, rows=rows)


def _charts_of(methods: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Headings, and the methods of their charts, so few that they can be told apart."""
    networks = [name for name in methods if ARMS[name].weights]
    own = [name for name in methods if name.startswith("mmpl_")]
    others = [BASE, *(name for name in methods if name not in (*own, *networks))]
    for words, names in (
        ("Methods over time", others),
        ("Variants of MMPL over time", own),
        ("Networks of their own over time", networks),
    ):
        for start in range(0, len(names), LINE_COLOURS):
            yield words, names[start : start + LINE_COLOURS]


def _lines(
    methods: Mapping[str, Any], names: Sequence[str], where: Sequence[str], first: int
) -> list[Line]:
    """The curves at `where` in what is known of each method; `first` is where their first number
    stands on the axis."""
    found = []
    for name in (name for name in names if name in methods):
        values = methods[name]
        for key in where:
            values = values[key]
        points = []
        for at, value in enumerate(values, first):
            if value is not None:
                mean = value["mean"]
                ends = (mean if value[end] is None else value[end] for end in ("low", "high"))
                points.append((float(at), mean, *ends))
        found.append(Line(name, points))
    return found


def _speed_up(found: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """What several processes gained, in words: of the paper, simulated, measured."""
    number, pairs = found["ranks"], found["pairs"]
    times = f"{found['seconds_of_one']:.1f} s by one, {found['seconds']:.1f} s by {number}"
    where = f"{found['cores']} cores, load {found['load']:g} before"
    most = f"{found['speed_up_least']:.2f} to {found['speed_up_most']:.2f} in {pairs} pairs"
    paper, busy = found["speed_up_paper"], found["busy_paper"]
    return {
        f"{number} processes, {found['segments']} segments, {where}: times as fast": (
            "-" if paper is None else f"{paper:.2f}",
            f"{found['speed_up_simulated']:.2f}",
            f"{found['speed_up']:.2f} ({most}; {times})",
        ),
        f"{number} processes: share of the time that they are busy": (
            "-" if busy is None else f"{busy:.1%}",
            f"{found['busy_simulated']:.1%}",
            f"{found['busy']:.1%} (one alone {found['busy_of_one']:.1%})",
        ),
    }


def _claim_cells(row: Mapping[str, Any], text: str) -> tuple[str, ...]:
    methods = f"{row['first']} / {row['second']}"
    return (text, row["verdict"], methods, row["measure"], _shown(row["difference"]))


def _numbers(found: Interval | None) -> dict[str, Any] | None:
    """As JSON, which knows no infinity."""
    if found is None:
        return None
    ends = {name: end if math.isfinite(end) else None for name, end in
            (("low", found.low), ("high", found.high))}  # fmt: skip
    return {"mean": found.mean, **ends, "programs": found.programs}


def _shown(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, high = ("?" if v is None else f"{v:.3g}" for v in (value["low"], value["high"]))
    return f"{value['mean']:.3g} [{low}, {high}], {value['programs']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
