"""From checkpoint files to parameters: headers, names, streaming."""
