"""The end of a step: summed gradients, ZeRO-1 shards and the optimizer."""
