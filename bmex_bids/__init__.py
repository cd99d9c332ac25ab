"""bmex: tissue-aware enhancement of structural brain MRI, as a BIDS App."""

__version__ = "0.1.0"
