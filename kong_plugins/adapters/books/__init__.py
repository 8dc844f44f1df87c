"""The books: a DuckDB file that one process writes and any number read, in turns. Nobody opens it but through here.

Never open the file by other means in a process that has it open: closing any descriptor of it would drop DuckDB's lock.
"""

from kong_plugins.adapters.books.opening import BooksUnavailable, open_books

__all__ = ["BooksUnavailable", "open_books"]
