"""The suites of ``camlake benchmark``, one file for each; a suite is a function from its configuration to figures."""
