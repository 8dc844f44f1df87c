"""Tokenizers of the served models, all from installed files: nothing is downloaded at run time."""

from kong_plugins.adapters.tokenizers.catalog import ModelTokenCounter, encoding_for
from kong_plugins.adapters.tokenizers.off_loop import OffLoopCounter

__all__ = ["ModelTokenCounter", "OffLoopCounter", "encoding_for"]
