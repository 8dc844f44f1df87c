"""Reports of the books: tables, files and one web page."""
