"""The files for `vllm serve --config`: every engine behind the gateway tells usage as bills are made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kong_plugins.engine_sim.options import parse_arguments

FOLDER = Path(__file__).parents[3] / "vllm"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
# Flags that only a real engine can have.
HARDWARE = {
    "tensor-parallel-size",
    "data-parallel-size",
    "api-server-count",
    "gpu-memory-utilization",
    "enforce-eager",
    "load-format",
    "scheduling-policy",
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_tells_usage_as_bills_need_it(path: Path) -> None:
    """A flat file of vLLM's long flags; the stand-in takes all of them but the hardware's, with the same meaning."""
    flags = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(isinstance(value, str | int | float | bool) for value in flags.values())
    arguments: list[str] = []
    for name, value in flags.items():
        if name not in HARDWARE:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    options = parse_arguments(arguments)
    assert options.enable_force_include_usage
    assert options.enable_prompt_tokens_details
    assert options.enable_request_id_headers
    assert options.enable_prefix_caching
    assert (options.served_model_name, options.reasoning_parser, options.max_model_len) == (
        "deepseek-r1",
        "deepseek_r1",
        8192,
    )


def test_the_readme_names_every_config() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(CONFIGS) == 3
    assert all(f"`{path.name}`" in text for path in CONFIGS)
