"""SAEs in the formats of other libraries: reading theirs, writing ours, and a folder for a model hub."""

from sae.exchange.reading import imported, load
from sae.exchange.writing import export

__all__ = ["export", "imported", "load"]
