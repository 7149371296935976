"""A prediction beside its measurement, and the causes of the difference."""
