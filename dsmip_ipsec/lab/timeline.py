"""A flow over the whole run, in bins of equal length: for plots. Pure.

What a handover did is measured exactly, step by step, by :mod:`dsmip_ipsec.lab.flow`; here it is
shown when it happened.
"""

from __future__ import annotations

from dsmip_ipsec.lab import flow, record

BIN_MS = 100.0


def timeline(series: flow.Series, node: str, origin_ns: int) -> record.FlowTimeline:
    """Bins of the flow of mobile node ``node``, counted from ``origin_ns`` (CLOCK_MONOTONIC)."""
    width = round(BIN_MS * flow.NS_PER_MS)
    arrived: dict[int, int] = {}
    for number, _, at in series.received:
        arrived[number] = min(at, arrived.get(number, at))
    numbers = {number for number, _ in series.sent}
    times = [at for _, at in series.sent]
    times += [at for number, at in arrived.items() if number in numbers]
    first = min(times, default=origin_ns)
    start = max(0, (first - origin_ns) // width)
    count = max((at - origin_ns) // width for at in times) - start + 1 if times else 0
    sent, lost, wait = [0] * count, [0] * count, [0.0] * count

    def place(at: int) -> int:
        return max(0, (at - origin_ns) // width - start)

    for number, at in series.sent:
        sent[place(at)] += 1
        lost[place(at)] += number not in arrived
    last: int | None = None
    for at in sorted(arrived[number] for number in numbers & arrived.keys()):
        if last is not None:
            index = place(at)
            wait[index] = max(wait[index], round((at - last) / flow.NS_PER_MS, 2))
        last = at
    return record.FlowTimeline(
        node=node,
        family=series.flow.family,
        direction=series.flow.direction,
        start_s=round(start * BIN_MS / 1000, 3),
        bin_ms=BIN_MS,
        sent=tuple(sent),
        lost=tuple(lost),
        wait_ms=tuple(wait),
    )


def measured(series: flow.Series, start_ns: int, end_ns: int, rtt_ms: float) -> record.Flow:
    """What happened to a flow in a window (CLOCK_MONOTONIC), as a step has it."""
    numbers = flow.analyse(series, start_ns, end_ns)
    gap = numbers.interruption_ms
    return record.Flow(
        node=series.flow.node,
        family=series.flow.family,
        direction=series.flow.direction,
        sent=numbers.sent,
        received=numbers.received,
        lost=numbers.lost,
        duplicates=numbers.duplicates,
        reordered=numbers.reordered,
        refused=numbers.refused,
        outage_ms=round(numbers.outage_ms, 2),
        sender_stall_ms=round(numbers.sender_stall_ms, 2),
        delay_ms_min=numbers.delay_ms_min,
        delay_ms_max=numbers.delay_ms_max,
        interruption_ms=None if gap is None else round(gap, 2),
        interruption_rtts=round(gap / rtt_ms, 3) if gap is not None and rtt_ms else None,
    )
