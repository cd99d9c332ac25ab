"""The papers' experiments; each is ``python -m bmex_bids.evaluation.experiments.NAME``."""
