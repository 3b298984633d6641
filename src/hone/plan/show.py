"""A plan for people: tables on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hone.plan.jobs import ServeJob, TrainJob
from hone.plan.planner import Plan

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def size(count: float) -> str:
    """Bytes, with three digits: ``1.53 GB``."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def amount(count: float) -> str:
    """A number with a unit: ``8.03G``."""
    for scale, unit in _UNITS:
        if abs(count) >= scale:
            return f"{count / scale:,.2f}{unit}"
    return f"{count:,.1f}" if count % 1 else f"{count:,.0f}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for scale, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * scale:
            return f"{seconds / scale:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def render(plan: Plan) -> RenderableType:
    """Memory by parts, whether it fits, warnings, speed and cost, and what to change."""
    parts: list[RenderableType] = [_memory(plan), _verdict(plan)]
    parts += [Text(sentence, style="yellow") for sentence in plan.warnings]
    parts += [Text(), _figures(plan)]
    if not plan.fits:
        parts += [Text(), _changes(plan)]
    return Group(*parts)


def _table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    return table


def _memory(plan: Plan) -> Table:
    table, peak = _table(), plan.peak
    for name, count in plan.parts.items():
        bar = "█" * round(30 * count / peak)
        table.add_row(name, size(count), Text(f"{count / peak:6.1%} {bar}"))
    where = "per device" if plan.devices > 1 else ""
    table.add_row("peak", size(peak), where)
    for name, count in plan.host.items():
        table.add_row(name, size(count), "in host memory")
    return table


def _verdict(plan: Plan) -> Text:
    device = plan.device
    share = plan.peak / device.usable if device.usable else float("inf")
    words = f"{share:.0%} of the {size(device.usable)} that {device.name} has for tensors."
    if plan.fits:
        return Text(f"It fits: {words}", style="green")
    return Text(f"It does not fit: it needs {words}", style="red")


def _figures(plan: Plan) -> Table:
    table = _table()
    active = "" if plan.active == plan.parameters else f"{amount(plan.active)} used by a token"
    table.add_row("parameters", amount(plan.parameters), active)
    if isinstance(plan.job, TrainJob):
        share = plan.trained / plan.parameters
        table.add_row("trained", amount(plan.trained), f"{share:.2%} of them")
    table.add_row("operations per token", amount(plan.flops_per_token), "")
    assumed = f"at {plan.efficiency:.0%} of the device's rates"
    table.add_row("tokens per second", f"{plan.tokens_per_second:,.0f}", assumed)
    if isinstance(plan.job, TrainJob):
        tokens = f"{plan.job.step_tokens:,} tokens"
        table.add_row("a step", duration(plan.seconds), tokens)
        if plan.run_seconds is not None:
            table.add_row(
                "the run", duration(plan.run_seconds), f"{amount(plan.job.tokens)} tokens"
            )
    if plan.serving is not None and isinstance(plan.job, ServeJob):
        _add_serving(table, plan, plan.job)
    if plan.cost is not None:
        what = "a million tokens" if plan.serving else "the run"
        table.add_row("cost", f"{plan.cost:,.2f}", f"of {what} at {plan.device.price:g} per hour")
    return table


def _add_serving(table: Table, plan: Plan, job: ServeJob) -> None:
    serving = plan.serving
    assert serving is not None
    table.add_row("a token of each request", duration(plan.seconds), f"{job.requests} requests")
    table.add_row("a whole prompt", duration(serving.prefill), f"{job.context:,} tokens")
    if serving.cache_per_token:
        table.add_row("cache per token", size(serving.cache_per_token), job.cache)
    if serving.state_per_request:
        table.add_row("state per request", size(serving.state_per_request), "at any length")
    table.add_row("most requests", f"{serving.requests:,}", f"of {job.context:,} tokens")
    if serving.context is not None:
        table.add_row("longest context", f"{serving.context:,}", "of one request")
    table.add_row(
        "compute-bound from",
        f"{serving.turning_point:,.0f}",
        "requests on; below, decoding waits for memory",
    )


def _changes(plan: Plan) -> RenderableType:
    changes = plan.changes()
    if not changes:
        return Text(
            "No change that hone knows makes it fit; take a smaller model or another device."
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("What would make it fit")
    table.add_column("peak", justify="right")
    table.add_column("time per token", justify="right")
    for change in changes:
        table.add_row(" + ".join(change.steps), size(change.peak), f"{change.slowdown:.2f}×")
    return table
