"""What `LLM` is made of, besides the client and the text service that the server uses too."""
