"""An output as SQL: queries from the command line, and the statements that other engines need to read its files."""
