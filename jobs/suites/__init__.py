"""What ``camlake benchmark`` measures: one file a suite, each a function from its configuration to figures."""
