"""The search for the best plan: over layouts, microbatch sizes and memory sizes."""
