"""A report as one web page: a file that asks for nothing else, for a phone, a desk and paper."""

from kong_plugins.reports.html.page import to_html

__all__ = ["to_html"]
