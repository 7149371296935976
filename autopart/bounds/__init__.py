"""Lower bounds: seconds that no plan can beat."""
