"""Testing: tiny models, conformance suites and loopback servers that anyone may use in tests of their own."""
