"""The room that imports torch: capture, profiling, probing and the engine that runs plans."""
