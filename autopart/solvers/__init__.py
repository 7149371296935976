"""Partitions for a problem and a layout: one file per method, one folder per kind of objective.

chain, ilp, probe, balance, replicated_stages   our own cost model, or layers' times alone
uniform, parameters                             the baselines
max_load/          the largest load of accelerators and CPUs (dnn-partitioning)
replication/       stages with a replica count each, networks of two levels (PipeDream)
tensor_parallel/   stages with their own data- and tensor-parallel degrees (Piper)
"""
