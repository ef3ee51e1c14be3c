"""The frontend knows text: templates, tokens, stop strings. Every user error ends here, before anything is queued."""
