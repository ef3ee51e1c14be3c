"""GGUF: one format for weights, configuration and tokenizer. Here all but the numbers are read; those are the loader's
(`quire.worker.loading.gguf`)."""
