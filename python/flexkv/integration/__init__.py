"""Adapters to serving engines, a package each. Importing one needs its engine."""
