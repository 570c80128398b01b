"""For the tests of others: problems, tiny networks, oracles, and suites that a part must pass."""
