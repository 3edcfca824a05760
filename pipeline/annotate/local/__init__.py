"""Annotates on one machine without Ray: the engine, the server of its workers, and the worker at the end of a pipe."""
