"""Evaluation against clean references, and the demonstration."""
