"""The nouns, and the abstract parts: everything that the other packages agree on."""
