"""Rows as a table to read, Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_bench.figures import Row

HEADERS = (
    "engine",
    "way",
    "streams",
    "shared",
    "prompt",
    "out",
    "tokens/s",
    "requests/s",
    "first token p50",
    "p95",
    "token gap p50",
    "client busy",
    "failed",
)


def _ms(spread: Row | None, which: str = "p50") -> str:
    return f"{spread[which]:,.1f} ms" if spread else "-"


def _cells(row: Row) -> list[str]:
    return [
        row["engine"],
        row["way"],
        f"{row['concurrency']}",
        f"{row['shared_percent']} %",
        f"{row['prompt_tokens']:,}",
        f"{row['output_tokens']:,}",
        f"{row['output_tokens_per_s']:,.0f}",
        f"{row['requests_per_s']:,.1f}",
        _ms(row["first_token_ms"]),
        _ms(row["first_token_ms"], "p95"),
        _ms(row["token_gap_ms"]),
        f"{100 * row['client_busy']:.0f} %",
        f"{sum(row['failures'].values())}",
    ]


def markdown(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads as text too."""
    rows = [list(headers), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headers))]
    padded = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def cells_table(rows: Iterable[Row]) -> str:
    """Every measured cell, in the order of measurement."""
    return markdown(HEADERS, [_cells(row) for row in rows if row["kind"] == "cell"])


def summary(rows: Sequence[Row]) -> str:
    """Conditions, then every kind of result with its figures: what one reads first."""
    parts = []
    for row in rows:
        match row["kind"]:
            case "conditions":
                shown = {key: value for key, value in row.items() if key not in {"kind", "at"}}
                parts.append("\n".join(f"{key}: {value}" for key, value in shown.items()))
            case "ratio":
                parts.append(
                    f"{row['engine']}, {row['way']}: {row['percent_of_direct']} % of direct throughput at "
                    f"{row['concurrency']} streams (tokens/s direct {row['direct_tokens_per_s']}, "
                    f"through {row['through_tokens_per_s']}, measured in turns; "
                    f"by turn {row['percent_by_turn']}, mean {row['percent_mean']} ± {row['percent_standard_error']})"
                )
            case "added":
                parts.append(
                    f"{row['engine']}, {row['way']}, {row['streams_beside']} streams beside: "
                    f"first token p50 +{row['added_p50_ms']} ms (95 %: {row['added_p50_95_percent_ms']}; "
                    f"median of differences {row['median_of_differences_ms']} ms, {row['pairs']} pairs in turns; "
                    f"direct {_ms(row['direct_first_token_ms'])}, through {_ms(row['through_first_token_ms'])})"
                )
            case "hops":
                for way in ("direct", "through"):
                    legs = ", ".join(f"{name} {spread['p50']}" for name, spread in row[f"{way}_ms"].items())
                    opened = row[f"{way}_opened_to_engine"]
                    parts.append(
                        f"{row['engine']}, {row['way']}, {way}: ms to each point, p50 of {row[f'{way}_seen']}: "
                        f"{legs}; {opened} connections opened to the engine"
                    )
            case "books":
                verdict = "balance" if not row["unexplained"] else "DO NOT BALANCE: " + "; ".join(row["unexplained"])
                parts.append(
                    f"{row['engine']}, {row['way']}: books {verdict}. {row['requests']} requests, "
                    f"{row['left_before_the_end']} left early; billed {row['billed_prompt']:,} + "
                    f"{row['billed_completion']:,}, engine {row['engine_prompt']:,} + {row['engine_completion']:,}; "
                    f"{row['prompt_counted_again_for_choices']:,} prompt tokens counted again for n=2, "
                    f"{row['generated_after_clients_left']:,} generated after clients had left"
                )
            case "started":
                parts.append(f"{row['engine']}: ready after {row['seconds']} s: {row['command']}")
            case "failed":
                parts.append(f"FAILED {row['step']}: {row['error']}")
            case _:
                pass
    return "\n\n".join(parts)
