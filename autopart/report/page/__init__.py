"""A plan as one page for a browser: figures, the tables behind them, and nothing from the network."""
