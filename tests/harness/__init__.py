"""What black-box tests and tests with real parts share. Knows Pointsman by its contract alone."""
