"""What leaves: bundles, programs, parity."""
