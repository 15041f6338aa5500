"""The service: a model behind HTTP, and the page it serves. Needs the extra `serve`."""
