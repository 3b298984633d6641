"""``hone bench``: what a server does under load."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hone.serve.bench_report import Report, Spread

bench = typer.Typer(
    no_args_is_help=True, help="Measure a server under load.", rich_markup_mode="rich"
)


class Api(StrEnum):
    """Which of a server's interfaces is asked."""

    COMPLETIONS = "completions"
    CHAT = "chat"


_LOAD, _LIMITS, _OUTPUT = "Load", "Service levels", "Output"


@bench.callback()
def commands() -> None:
    """Commands that measure."""


@bench.command()
def serve(
    url: Annotated[
        str, typer.Argument(help="The server, any that speaks OpenAI's protocol.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="The model's name; the server's first by default.")
    ] = None,
    api: Annotated[Api, typer.Option(help="What is asked.")] = Api.COMPLETIONS,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second, as a Poisson process.", rich_help_panel=_LOAD),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Requests at any time, instead of --rate. \\[default: 8]", rich_help_panel=_LOAD
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(help="How many in all. \\[default: 100]", rich_help_panel=_LOAD),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="How long requests come, instead.", rich_help_panel=_LOAD),
    ] = None,
    lengths: Annotated[
        str,
        typer.Option(
            help="Tokens of prompt and answer, such as 128:32; a JSONL file with a `prompt` or "
            "`messages` (and `max_tokens`) in every line; or mix: half conversations (161 and 338 "
            "tokens in the mean), half instructions (19 and 58).",
            rich_help_panel=_LOAD,
        ),
    ] = "mix",
    vocabulary: Annotated[
        int | None,
        typer.Option(
            help="Prompts are random token ids below this, not texts.", rich_help_panel=_LOAD
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos",
            help="Answers go on to their full length; for servers that know the field.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling.", rich_help_panel=_LOAD)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.", rich_help_panel=_LOAD)] = 0,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take.", rich_help_panel=_LOAD)
    ] = 600.0,
    slo_ttft: Annotated[
        float | None,
        typer.Option(help="Seconds to the first token.", rich_help_panel=_LIMITS),
    ] = None,
    slo_itl: Annotated[
        float | None,
        typer.Option(
            help="Seconds between tokens, in the mean of a request.", rich_help_panel=_LIMITS
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw it: a .svg, .png or .pdf file.", rich_help_panel=_OUTPUT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A folder for report.json, requests.jsonl and load.svg.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Put a load on a server, and print how many tokens came how fast.

    Throughput, time to the first token, time between tokens, goodput (requests per second that
    keep the service levels), refusals and errors. Ctrl-C ends it early and prints what there is.

    A key is read from OPENAI_API_KEY.
    """
    import asyncio
    import os

    from rich.console import Console

    from hone.core.errors import RequestError
    from hone.core.files import atomic_path, make_directory, write_json
    from hone.core.progress import progress
    from hone.serve.bench import Load, Measured, run
    from hone.serve.bench_client import Address
    from hone.serve.bench_explore import explore
    from hone.serve.bench_picture import check_name, draw
    from hone.serve.bench_report import Limits, record, summarise
    from hone.serve.bench_workload import Lengths, drawn, from_file, parse_lengths, read_asks

    if rate is not None and concurrency is not None:
        raise RequestError("Give --rate or --concurrency: one fixes what the other measures.")
    if requests is not None and seconds is not None:
        raise RequestError("Give --requests or --seconds: either ends the load.")
    positive = {
        "--rate": rate,
        "--concurrency": concurrency,
        "--requests": requests,
        "--seconds": seconds,
        "--timeout": timeout,
        "--vocabulary": vocabulary,
        "--slo-ttft": slo_ttft,
        "--slo-itl": slo_itl,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise RequestError(f"{name} is {value}; give a number above 0.")
    if vocabulary is not None and api is Api.CHAT:
        raise RequestError("--vocabulary needs --api completions: a chat takes no token ids.")
    if plot is not None:
        check_name(plot)
    if requests is None and seconds is None:
        requests = 100
    kind = parse_lengths(lengths)
    asks = read_asks(kind) if isinstance(kind, Path) else None
    if asks and api is Api.COMPLETIONS and any(_is_chat(ask.prompt) for ask in asks):
        raise RequestError(f"{kind} holds messages; ask with --api chat.")
    address = Address.parse(url, os.environ.get("OPENAI_API_KEY", ""))
    load = Load(rate, concurrency or 8, requests, seconds, seed)
    fields = {"temperature": temperature} | ({"ignore_eos": True} if ignore_eos else {})

    async def measure() -> tuple[str, Measured]:
        found = await explore(address, model, api.value, timeout, fields)
        limit = Lengths() if found.context is None else Lengths(context=found.context)
        alike = kind if isinstance(kind, tuple) else None
        if asks is not None:
            source = from_file(asks, seed)
        else:
            source = drawn(Lengths(alike, limit.context), seed, found.words, vocabulary)
        total, unit = (requests, "requests") if requests is not None else (round(seconds or 0), "s")
        with progress("Measuring", total, unit) as bar:
            shown = 0

            def finished(answer: object) -> None:
                nonlocal shown
                del answer
                now = shown + 1 if unit == "requests" else int(min(clock(), total))
                bar.advance(now - shown)
                shown = now

            start = asyncio.get_running_loop().time()

            def clock() -> float:
                return asyncio.get_running_loop().time() - start

            return found.target.model, await run(found.target, source, load, finished)

    name, measured = asyncio.run(measure())
    report = summarise(measured, Limits(slo_ttft, slo_itl))
    shape = f"{rate:g} requests/s" if rate is not None else f"{load.concurrency} at a time"
    title = f"{name} at {address.base}, {shape}, lengths {lengths}, seed {seed}"
    settings = {"url": address.base, "model": name, "api": api.value, "lengths": lengths} | {
        "rate": rate,
        "concurrency": None if rate else load.concurrency,
        "seed": seed,
    }
    result = {"settings": settings} | report.to_dict()
    if out is not None:
        make_directory(out)
        write_json(out / "report.json", result)
        with atomic_path(out / "requests.jsonl") as temporary:
            lines = (json.dumps(record(answer)) + "\n" for answer in measured.answers)
            temporary.write_text("".join(lines), encoding="utf-8")
        draw(measured, report, out / "load.svg", title)
    if plot is not None:
        draw(measured, report, plot, title)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        Console().print(_render(report, title))
    if not report.whole and not report.stopped:
        raise typer.Exit(1)


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], dict)


def _render(report: "Report", title: str) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    figures = Table(show_header=False, box=None, pad_edge=False)
    figures.add_column(style="bold")
    figures.add_column(justify="right")
    figures.add_column()
    figures.add_row("requests", f"{report.request_rate:,.2f}", "whole answers per second")
    figures.add_row("output tokens", f"{report.output_rate:,.1f}", "per second")
    if report.limits.ttft is not None or report.limits.itl is not None:
        kept = []
        if report.limits.ttft is not None:
            kept.append(f"first token within {_seconds(report.limits.ttft)}")
        if report.limits.itl is not None:
            kept.append(f"{_seconds(report.limits.itl)} between tokens")
        figures.add_row("goodput", f"{report.goodput:,.2f}", f"per second with {', '.join(kept)}")
    figures.add_row("at once", f"{report.most_at_once:,}", "requests at most")
    spreads = Table(box=None, pad_edge=False)
    spreads.add_column("", style="bold")
    for head in ("mean", "p50", "p95", "p99", "most"):
        spreads.add_column(head, justify="right")
    for name, spread in (
        ("time to the first token", report.ttft),
        ("between pieces", report.itl),
        ("per token, mean of a request", report.per_token),
        ("whole answer", report.latency),
    ):
        spreads.add_row(name, *_row(spread))
    ends = [f"{report.whole:,} whole", f"{report.refused:,} refused (429)"]
    ends += [f"{report.unfinished:,} unfinished"] if report.unfinished else []
    counts = f"{report.sent:,} requests in {report.seconds:.1f} s: {', '.join(ends)}"
    parts: list[RenderableType] = [Text(title), Text(), figures, Text(), spreads, Text()]
    parts.append(Text(("Stopped early. " if report.stopped else "") + counts))
    for kind, count in report.errors.items():
        words = report.words.get(kind, "")
        parts.append(Text(f"{count:,} × {kind}{': ' if words else ''}{words}", style="red"))
    if report.late:
        parts.append(
            Text(
                f"This generator was up to {_seconds(report.lag)} late with a request (it took "
                f"{report.busy:.0%} of a processor): the server may be faster than these figures.",
                style="yellow",
            )
        )
    return Group(*parts)


def _row(spread: "Spread | None") -> list[str]:
    if spread is None:
        return ["-"] * 5
    return [_seconds(value) for value in (spread.mean, spread.p50, spread.p95, spread.p99)] + [
        _seconds(spread.most)
    ]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
