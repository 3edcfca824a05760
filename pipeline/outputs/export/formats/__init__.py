"""The formats of ``camlake export``: one file a format, with the name of the format; see ``export.writer``."""
