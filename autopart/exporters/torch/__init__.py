"""The export to plain torch.distributed.pipelining."""
