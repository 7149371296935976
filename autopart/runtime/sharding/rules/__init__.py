"""Rules that shard one kind of operation each. Their table is in `table.py`."""
