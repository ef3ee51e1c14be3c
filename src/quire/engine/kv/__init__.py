"""The paged KV cache as the engine sees it: block numbers, reference counts and content hashes."""
