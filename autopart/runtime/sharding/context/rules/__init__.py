"""Rules of the context pass, one file per kind of operation."""
