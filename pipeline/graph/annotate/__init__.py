"""The Ray engine of ``camlake annotate``: it runs the stages of ``pipeline.annotate`` on Ray Data."""
