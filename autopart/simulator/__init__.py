"""A schedule run on paper: when each action starts and ends, and the memory on every rank.

A rank runs its order one action after the other. An action starts when its rank is free and the
result that it awaits has arrived. There are two modes for sends:

- Sends overlap compute: two ranks have a link in each direction, first in, first out.
- Sends do not overlap: a send keeps its sender busy after the action, and its receiver busy before
  the next action.

A result for the same rank is there at once. After the last action come the gradient syncs, then
each rank's optimizer step.
"""
