"""What ends a command early: a time limit, Ctrl-C, a signal that asks the process to end."""
