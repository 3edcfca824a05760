"""Tables, run documents, configuration, reasons and errors: what every other level agrees on."""
