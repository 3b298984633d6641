"""The options of ``hone generate`` and ``hone chat`` that say how a token is chosen."""

from typing import Annotated

import typer

MaxTokens = Annotated[int, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; higher is more varied.")
]
TopK = Annotated[int, typer.Option(help="Sample among the K likeliest tokens; 0 means all.")]
TopP = Annotated[
    float, typer.Option(help="Sample among the fewest tokens with this probability together.")
]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this times the likeliest.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens that were used already become less likely.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="Text that ends the output, not shown; may be given several times."),
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
DType = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16: what to compute in.")
]
PresencePenalty = Annotated[
    float, typer.Option(help="Taken from the scores of tokens that the output has; -2 to 2.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Taken from them for each time that it has them; -2 to 2.")
]
Speculation = Annotated[
    str | None,
    typer.Option(
        help="Guess tokens ahead, which changes no output: ngram, draft:PATH or medusa:PATH."
    ),
]
