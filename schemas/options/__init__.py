"""The options of each command: a field is an option, a key of the YAML file and a line of the help."""
