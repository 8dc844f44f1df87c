"""A stand-in for `vllm serve`: same endpoints, bytes, token counts and counters as vLLM 0.32, without weights or a GPU.

Importable (`EngineSim`, `EngineOptions`, `serve_in_thread`) or a command (`python -m kong_plugins.engine_sim`).
Shapes come from recorded exchanges; what was never recorded says so where it is built (embeddings, errors of
`/v1/messages`, `logprobs` of `/v1/completions`).
"""

from kong_plugins.engine_sim.faults import DieHow, Faults
from kong_plugins.engine_sim.options import EngineOptions
from kong_plugins.engine_sim.server import EngineSim, serve_in_thread

__all__ = ["DieHow", "EngineOptions", "EngineSim", "Faults", "serve_in_thread"]
