//! Swap over a network without the deadlock.
