"""The tables, charts and page of a benchmark."""
