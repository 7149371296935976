"""What the cost model needs of a machine or cluster, measured between real ranks."""
