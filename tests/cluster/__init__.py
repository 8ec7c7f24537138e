"""Tests with several hosts, each a set of Linux namespaces; run by `make test-cluster`, apart from `make test`."""
