"""Built-in data_formats."""
