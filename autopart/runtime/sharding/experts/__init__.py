"""Expert parallelism: what the pass over a microbatch's samples does with experts."""
