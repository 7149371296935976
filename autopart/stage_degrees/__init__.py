"""Plans in which each stage has its own tensor degree: problem, GPUs of ranks, price, bounds."""
